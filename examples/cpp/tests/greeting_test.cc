#include <cstdio>
#include <cstring>

#include "gen/greeting.h"

int main() {
  std::puts(kGreeting);
  return std::strlen(kGreeting) > 0 ? 0 : 1;
}
