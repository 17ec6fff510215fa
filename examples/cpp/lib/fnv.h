#ifndef LIB_FNV_H_
#define LIB_FNV_H_

#include <cstdint>
#include <string>

// The 64-bit FNV-1a hash of s.
std::uint64_t Fnv1a(const std::string& s);

#endif  // LIB_FNV_H_
