// test_fragments.c - which lane holds which element: ldmatrix, movmatrix, mma.m16n8k16 and cp.async as the kernels use them.
//
// What it is:  one warp works on matrices whose elements are their own numbers, so that every register tells where its
//              contents came from. Linked with the nvcc object it asks the hardware, and compares it word by word with the
//              twins of cuda_emu.h: both, and the kernels, come from one manual (PTX ISA 8), and only this test can tell
//              whether it was read correctly. Without a GPU it holds the twins to the manual's formulas.
// Read before: gpu_probe.h.
#include "gpu_probe.h"
#include "../ops.h"
#include "test.h"

__attribute__((weak)) bool gpu_fragments(const FragmentsIn *in, FragmentsOut *out, char *why, size_t size);

// Elements (row, column) of a lane's registers, from the manual: lane = 4 g + q.
static int a_row(int lane, int reg) { return lane / 4 + 8 * (reg & 1); }
static int a_col(int lane, int reg, int half) { return 2 * (lane % 4) + 8 * (reg >> 1) + half; }
static int b_row(int lane, int reg, int half) { return 2 * (lane % 4) + 8 * reg + half; }
static int b_col(int lane) { return lane / 4; }
static int c_row(int lane, int reg) { return lane / 4 + 8 * (reg >> 1); }
static int c_col(int lane, int reg) { return 2 * (lane % 4) + (reg & 1); }

// Small whole numbers without symmetry: products and sums of sixteen are exact in bf16 and fp32.
static int a_value(int i, int k) { return (7 * i + 3 * k + i * k) % 23 - 11; }
static int b_value(int k, int n) { return (5 * k + 11 * n + k * n) % 19 - 9; }
static uint16_t whole(int v) { return f32_to_bf16((float)v); }

static FragmentsIn probe;
static FragmentsOut seen;
static bool hardware;
static bool look(void) { // false: the test has nothing to look at, and says why
    static int state;    // 1: seen, 2: nothing to see
    static char why[600];
    if (!state) {
        for (int i = 0; i < 256; i++) (&probe.tile[0][0][0])[i] = (uint16_t)(0x4000 + i);
        for (int i = 0; i < 32; i++) probe.row_of[i] = (uint8_t)((13 * i + 5) % 32); // rows in no order
        for (int lane = 0; lane < 32; lane++) {
            for (int r = 0; r < 4; r++) {
                probe.a[lane][r] = whole(a_value(a_row(lane, r), a_col(lane, r, 0))) |
                                   (uint32_t)whole(a_value(a_row(lane, r), a_col(lane, r, 1))) << 16;
                probe.c[lane][r] = (float)(100 * c_row(lane, r) + c_col(lane, r));
            }
            for (int r = 0; r < 2; r++)
                probe.b[lane][r] = whole(b_value(b_row(lane, r, 0), b_col(lane))) |
                                   (uint32_t)whole(b_value(b_row(lane, r, 1), b_col(lane))) << 16;
            probe.bytes[lane] = (uint8_t)(lane % 17);
            for (int half = 0; half < 2; half++) // element (i, j) is 8 i + j
                probe.pair[lane] |= (uint32_t)(0x4000 + 8 * (lane / 4) + 2 * (lane % 4) + half) << (16 * half);
            // Between two bf16 numbers: halfway with an even and an odd one below, and a little off that.
            probe.low[lane] = 1 + (float)lane / 128 + 1.0f / 256 + (lane % 3 - 1) * 1e-6f;
            probe.high[lane] = -3e8f * (1 + (float)(31 - lane) / 128 + 1.0f / 256 + (lane % 5 - 2) * 1e-6f);
            probe.power[lane] = lane < 31 ? 6.3f * (float)lane - 125.5f : -127.5f;
            for (int i = 0; i < 16; i++) probe.from[lane][i] = (uint8_t)(16 * lane + i + 1);
        }
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) probe.x[i][j] = whole(a_value(i, j)), probe.w[i][j] = whole(b_value(i, j));
        hardware = gpu_fragments != NULL;
        state = 1;
        if (hardware && !gpu_fragments(&probe, &seen, why, sizeof why)) state = 2;
        if (!hardware && !emulated_fragments(&probe, &seen, why, sizeof why)) state = 2;
    }
    if (state == 1) return true;
    snprintf(test_skip_reason, sizeof test_skip_reason, "%.250s", why), test_skipped_now = 1;
    return false;
}

static void expect_matrix(const char *what, const uint32_t got[32][4], bool turned) {
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++)
            for (int half = 0; half < 2; half++) {
                int i = lane / 4, j = 2 * (lane % 4) + half, row = turned ? j : i, col = turned ? i : j;
                unsigned value = got[lane][m] >> (16 * half) & 0xffff,
                         want = 0x4000u + 8u * probe.row_of[8 * m + row] + (unsigned)col;
                if (value != want)
                    FAIL("%s: lane %d, word %d, half %d holds element %#x, the manual says %#x", what, lane, m, half,
                         value, want);
            }
}
TEST(ldmatrix_gives_each_lane_two_neighbours_of_a_row) {
    if (look()) expect_matrix("ldmatrix", seen.plain, false);
}
TEST(ldmatrix_trans_gives_each_lane_two_neighbours_of_a_column) {
    if (look()) expect_matrix("ldmatrix.trans", seen.turned, true);
}
TEST(mma_multiplies_what_the_manual_places_in_its_registers) {
    if (!look()) return;
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++) {
            int i = c_row(lane, r), n = c_col(lane, r), sum = 100 * i + n;
            for (int k = 0; k < 16; k++) sum += a_value(i, k) * b_value(k, n);
            if (seen.c[lane][r] != (float)sum)
                FAIL("mma: lane %d, register %d is %g, the manual says c[%d,%d] = %d", lane, r, (double)seen.c[lane][r],
                     i, n, sum);
        }
}
TEST(products_from_shared_memory_are_right_in_every_layout) {
    if (!look()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            int nt = 0, nn = 0, tn = 0;
            for (int k = 0; k < 16; k++) {
                nt += a_value(i, k) * b_value(j, k), nn += a_value(i, k) * b_value(k, j);
                tn += a_value(k, i) * b_value(k, j);
            }
            if (seen.nt[i][j] != (float)nt || seen.nn[i][j] != (float)nn || seen.tn[i][j] != (float)tn)
                FAIL("element %d,%d: NT %g (%d), NN %g (%d), TN %g (%d)", i, j, (double)seen.nt[i][j], nt,
                     (double)seen.nn[i][j], nn, (double)seen.tn[i][j], tn);
        }
}
TEST(cp_async_fills_with_zeros_behind_the_bytes_it_copies) {
    if (!look()) return;
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 16; i++)
            EXPECT_INT(seen.to[lane][i], i < probe.bytes[lane] ? (uint8_t)(16 * lane + i + 1) : 0);
}
TEST(movmatrix_turns_rows_into_columns) {
    if (!look()) return;
    for (int lane = 0; lane < 32; lane++)
        for (int half = 0; half < 2; half++)
            EXPECT_INT(seen.moved[lane] >> (16 * half) & 0xffff, 0x4000 + 8 * (2 * (lane % 4) + half) + lane / 4);
}
TEST(pairs_are_rounded_to_nearest_even_with_the_first_one_below) {
    if (!look()) return;
    for (int lane = 0; lane < 32; lane++)
        EXPECT_INT(seen.rounded[lane], f32_to_bf16(probe.low[lane]) | (uint32_t)f32_to_bf16(probe.high[lane]) << 16);
}
TEST(powers_of_two_are_right_to_two_units_of_the_last_place) {
    if (!look()) return;
    for (int lane = 0; lane < 32; lane++) {
        double want = lane < 31 ? exp2((double)probe.power[lane]) : 0; // below 2^-126
        EXPECT_NEAR(seen.exp2[lane], want, want * 2.4e-7);
    }
}
// On a GPU: the hardware and the twins. Without one: the twins under every schedule.
TEST(the_emulator_leaves_the_same_words_in_every_register) {
    if (!look()) return;
    for (int s = 0; s < 6; s++) {
        FragmentsOut twin;
        char why[600];
        emulated_schedule(s / 2, s % 2);
        EXPECT(emulated_fragments(&probe, &twin, why, sizeof why));
        EXPECT(!memcmp(&twin, &seen, offsetof(FragmentsOut, exp2)));
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 4; r++) {
                if (twin.plain[lane][r] != seen.plain[lane][r] || twin.turned[lane][r] != seen.turned[lane][r])
                    FAIL("ldmatrix, lane %d, word %d: emulated %08x %08x, device %08x %08x", lane, r,
                         twin.plain[lane][r], twin.turned[lane][r], seen.plain[lane][r], seen.turned[lane][r]);
                if (twin.c[lane][r] != seen.c[lane][r])
                    FAIL("mma, lane %d, register %d: emulated %g, device %g", lane, r, (double)twin.c[lane][r],
                         (double)seen.c[lane][r]);
            }
    }
}
