// Included by part1.cpp and part2.cpp, by nothing else.
inline int toy_scale(int value) { return value * 3; }
