int toy_part_3(int value) {
    return value + 3;
}
