#include "lib/fnv.h"

#include <cstdio>

int main() {
  if (Fnv1a("") != 14695981039346656037ull || Fnv1a("a") != 12638187200555641996ull) {
    std::puts("FNV-1a is off");
    return 1;
  }
  std::puts("FNV-1a is right");
}
