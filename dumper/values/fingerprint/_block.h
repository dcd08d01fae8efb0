/* Included once for each instruction set: NAMED(name) is its name there, LANES_TYPE so many (GROUP) lanes, and
   PRODUCT(word) both halves of each multiplied. */

TARGET static void NAMED(add_block)(Sums *sums, const unsigned char *block, uint64_t number) {
    LANES_TYPE total_first = {0}, total_second = {0};
    uint64_t keys[LANES];
    for (int lane = 0; lane < LANES; lane++) keys[lane] = (number * LANES + lane + 1) * STRAND;
    for (int lane = 0; lane < LANES; lane += GROUP) {
        LANES_TYPE first = {0}, second = {0}, key;
#pragma GCC unroll 8
        for (int stripe = 0; stripe < STRIPES; stripe++) {
            LANES_TYPE word;
            memcpy(&word, block + (stripe * LANES + lane) * 8, sizeof word);
            LANES_TYPE one = word ^ stripe_keys[stripe][0], other = word ^ stripe_keys[stripe][1];
            first += PRODUCT(one) + one;
            second += PRODUCT(other) + other;
        }
        memcpy(&key, keys + lane, sizeof key);
        first ^= key;
        first = (first ^ (first >> 33)) * 0xFF51AFD7ED558CCDu;
        first = (first ^ (first >> 33)) * 0xC4CEB9FE1A85EC53u;
        total_first += first ^ (first >> 33);
        second ^= key;
        second = (second ^ (second >> 30)) * 0xBF58476D1CE4E5B9u;
        second = (second ^ (second >> 27)) * 0x94D049BB133111EBu;
        total_second += second ^ (second >> 31);
    }
    uint64_t found[2][GROUP];
    memcpy(found[0], &total_first, sizeof total_first);
    memcpy(found[1], &total_second, sizeof total_second);
    for (int lane = 0; lane < GROUP; lane++) {
        sums->first += found[0][lane];
        sums->second += found[1][lane];
    }
}

TARGET static Sums NAMED(sums_of)(const unsigned char *data, size_t length) {
    Sums sums = {0, 0};
    size_t blocks = length / BLOCK;
    for (size_t block = 0; block < blocks; block++) NAMED(add_block)(&sums, data + block * BLOCK, block);
    if (length % BLOCK) {
        unsigned char last[BLOCK] = {0};
        memcpy(last, data + blocks * BLOCK, length % BLOCK);
        NAMED(add_block)(&sums, last, blocks);
    }
    return sums;
}
