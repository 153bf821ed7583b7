int toy_part_4(int value) {
    return value + 4;
}
