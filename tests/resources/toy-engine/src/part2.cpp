#include "parts.h"

int toy_part_2(int value) {
    return toy_scale(value) + 2;
}
