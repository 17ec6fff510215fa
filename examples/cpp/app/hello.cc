#include <cstdio>

#include "gen/greeting.h"
#include "lib/fnv.h"

int main() {
  std::printf("%s (%016llx)\n", kGreeting, static_cast<unsigned long long>(Fnv1a(kGreeting)));
}
