// Reads a checked-in and a generated data file, as tests do.
#include <cstdio>
#include <fstream>
#include <string>

int main() {
  std::ifstream numbers("tests/data/numbers.txt");
  int sum = 0;
  for (int n; numbers >> n;) sum += n;
  if (sum != 10) {
    std::printf("the numbers add up to %d, not 10\n", sum);
    return 1;
  }
  std::ifstream summary("gen/summary.txt");
  int lines = 0;
  for (std::string line; std::getline(summary, line);) ++lines;
  if (lines != 5) {
    std::printf("the summary has %d lines, not 5\n", lines);
    return 1;
  }
}
