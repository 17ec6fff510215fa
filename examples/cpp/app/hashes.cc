// Prints the hash of each line of the files that it is given.
#include <cstdio>
#include <fstream>
#include <string>

#include "lib/fnv.h"

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream in(argv[i]);
    if (!in) {
      std::fprintf(stderr, "%s: cannot be read\n", argv[i]);
      return 1;
    }
    for (std::string line; std::getline(in, line);) {
      std::printf("%016llx %s\n", static_cast<unsigned long long>(Fnv1a(line)), line.c_str());
    }
  }
}
