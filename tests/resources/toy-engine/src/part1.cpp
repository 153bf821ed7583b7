#include "parts.h"

int toy_part_1(int value) {
    return toy_scale(value) + 1;
}
