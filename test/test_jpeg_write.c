// test_jpeg_write.c - JPEG out: our own structural check and decoder read it back, as close as the quality says.
#include "test.h"

typedef struct Picture {
    uint8_t *rgb;
    int w, h;
} Picture;
enum Kind { FLAT, GRADIENT, NOISE, GREY_NOISE, EDGES, KINDS };

static size_t bytes(Picture p) { return (size_t)p.w * (size_t)p.h * 3; }
static Picture make(enum Kind kind, int w, int h, uint32_t seed) {
    Picture p = {malloc((size_t)(w * h * 3)), w, h};
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) {
                uint32_t noise = philox(seed, RANDOM_TEST, (uint32_t)(y * w + x), 0, 0).v[kind == GREY_NOISE ? 0 : c];
                int v = kind == FLAT       ? (int)(philox(seed, RANDOM_TEST, 9, 9, 9).v[c] & 255)
                        : kind == GRADIENT ? (c == 0   ? x * 255 / w
                                              : c == 1 ? y * 255 / h
                                                       : (x + y) * 255 / (w + h))
                        : kind == EDGES    ? ((x / 5 + y / 5) % 2 ? 255 : 0)
                                           : (int)(noise & 255);
                p.rgb[3 * (y * w + x) + c] = (uint8_t)v;
            }
    return p;
}
static Picture scene(int w, int h, int64_t index) {
    Scene s;
    SceneOptions o = {.seed = 3, .index = index, .width = w, .height = h, .style = SCENE_NATURAL, .kind = SCENE_MIXED};
    scene_render(&s, &o);
    Picture p = {malloc((size_t)(w * h * 3)), w, h};
    memcpy(p.rgb, s.rgb, bytes(p));
    scene_free(&s);
    return p;
}

typedef struct Trip { // there and back
    size_t size;
    double psnr; // dB over all samples; 99 when nothing differs
    int worst;   // levels
} Trip;
static Trip trip(Picture p, int quality, bool subsample) {
    Err e = {0};
    uint8_t *jpeg = NULL;
    Trip t = {0};
    Image im;
    ImageFacts f;
    EXPECT(image_encode_jpeg(&jpeg, &t.size, p.rgb, p.w, p.h, quality, subsample, "x", &e));
    EXPECT(image_check(&f, jpeg, t.size, "x", false, &e)); // ends in time, no byte left over, every code known
    EXPECT_STR(f.format, "JPEG");
    EXPECT(f.width == p.w && f.height == p.h && f.components == 3 && f.depth == 8 && !f.coded_rgb);
    EXPECT_INT(f.orientation, 1);
    free(f.jpeg);
    EXPECT(image_decode(&im, jpeg, t.size, "x", (ImageOptions){0}, &e));
    EXPECT_STR(e.code, "");
    EXPECT(im.width == p.w && im.height == p.h);
    double sum = 0;
    for (size_t i = 0; im.rgb && i < bytes(p); i++) {
        int d = abs(im.rgb[i] - p.rgb[i]);
        sum += d * d, t.worst = d > t.worst ? d : t.worst;
    }
    t.psnr = sum > 0 ? 10 * log10(255.0 * 255 * (double)bytes(p) / sum) : 99;
    image_free(&im), free(jpeg);
    return t;
}

TEST(any_size_comes_back) {
    static const int sizes[][2] = {{1, 1},   {2, 1},   {1, 9},   {7, 9},   {8, 8},    {9, 8},    {15, 16},
                                   {16, 16}, {17, 16}, {16, 17}, {17, 33}, {100, 75}, {224, 224}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int sub = 0; sub < 2; sub++) {
            Picture p = make(GRADIENT, sizes[i][0], sizes[i][1], 1);
            Trip t = trip(p, 100, sub);
            if (!sub) EXPECT(t.worst <= 4 && t.psnr > 50);
            else if (p.w >= 100) EXPECT(t.psnr > 49); // in a smaller one the colours are too steep for 4:2:0
            for (size_t k = 0; k < bytes(p); k++) p.rgb[k] = p.rgb[k - k % 3]; // in grey it keeps every pixel
            t = trip(p, 100, sub);
            EXPECT(t.worst <= 2);
            free(p.rgb);
        }
}

TEST(flat_colours_come_back_within_two_levels) {
    for (uint32_t i = 0; i < 200; i++) {
        Picture p = make(FLAT, 1 + (int)(i % 40), 1 + (int)(i % 23), i);
        if (i < 8) // the corners of the colour cube
            for (size_t k = 0; k < bytes(p); k++) p.rgb[k] = (i >> k % 3) & 1 ? 255 : 0;
        for (int sub = 0; sub < 2; sub++) EXPECT(trip(p, 95, sub).worst <= 2 && trip(p, 100, sub).worst <= 2);
        free(p.rgb);
    }
}

// Bounds from the steps: an error spread evenly over a step q has the variance q^2 / 12. At 95 the luma steps are 1 to
// 12 (mean 6), at 75 3 to 61; noise feels all of them, smooth pictures the first few.
TEST(the_error_is_what_the_quality_says) {
    static const struct {
        enum Kind kind; // KINDS: a drawn scene
        double least95, least75, least95_420, least75_420;
    } bounds[] = {{GRADIENT, 50, 47, 49, 46},
                  {GREY_NOISE, 41, 27.5, 41, 27.5},
                  {EDGES, 40, 28, 40, 28},
                  {KINDS, 42, 37, 40.5, 36}};
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        Picture p = bounds[i].kind == KINDS ? scene(224, 224, 1) : make(bounds[i].kind, 224, 224, 2);
        double got[4] = {trip(p, 95, false).psnr, trip(p, 75, false).psnr, trip(p, 95, true).psnr,
                         trip(p, 75, true).psnr};
        double least[4] = {bounds[i].least95, bounds[i].least75, bounds[i].least95_420, bounds[i].least75_420};
        for (int k = 0; k < 4; k++)
            if (!(got[k] >= least[k])) FAIL("picture %zu, case %d: %.2f dB, not %.2f", i, k, got[k], least[k]);
        free(p.rgb);
    }
    Picture p = make(NOISE, 224, 224, 2); // colour without order is what 4:2:0 cannot keep
    EXPECT(trip(p, 95, false).psnr > 34.5 && trip(p, 75, false).psnr > 21);
    EXPECT(trip(p, 95, true).psnr < 20);
    free(p.rgb);
}

TEST(a_higher_quality_is_closer_and_larger) {
    static const int quality[] = {1, 5, 10, 25, 49, 50, 60, 75, 85, 90, 95, 99, 100};
    Picture p[] = {scene(160, 120, 2), make(NOISE, 61, 47, 4)};
    for (int i = 0; i < 2; i++)
        for (int sub = 0; sub < 2; sub++) {
            Trip last = {0};
            for (size_t k = 0; k < sizeof quality / sizeof *quality; k++) {
                Trip t = trip(p[i], quality[k], sub);
                EXPECT(t.size > last.size);
                if (!(i == 1 && sub)) EXPECT(t.psnr > last.psnr); // colour noise in 4:2:0 is lost before any step
                last = t;
            }
        }
    EXPECT(trip(p[0], 90, true).size < trip(p[0], 90, false).size);
    EXPECT(trip(p[0], 75, true).size < bytes(p[0]) / 8);
    free(p[0].rgb), free(p[1].rgb);
}

// Blocks whose coefficients are as large as they can be: the longest codes, and differences of DC in both directions.
TEST(the_extremes_have_codes) {
    for (int pattern = 0; pattern < 64; pattern++) { // the signs of each basis function, in luma and in colour
        Picture p = make(FLAT, 48, 16, 0);
        for (int y = 0; y < p.h; y++)
            for (int x = 0; x < p.w; x++)
                for (int c = 0; c < 3; c++) {
                    double wave = cos((2 * x + 1) * (pattern % 8) * 3.14159265358979 / 16) *
                                  cos((2 * y + 1) * (pattern / 8) * 3.14159265358979 / 16);
                    bool up = (wave > 0) ^ (x / 8 % 2) ^ (x >= 32 && c == 2);
                    p.rgb[3 * (y * p.w + x) + c] = up ? 255 : 0;
                }
        EXPECT(trip(p, 100, false).worst <= 3);
        trip(p, 100, true);
        free(p.rgb);
    }
}

TEST(the_headers_are_jfif_and_the_scaled_tables) {
    Picture p = make(GRADIENT, 20, 11, 1);
    static const struct {
        int quality, luma[4], chroma[4]; // the first four of a table, along the zigzag
    } cases[] = {{50, {16, 11, 12, 14}, {17, 18, 18, 24}}, {75, {8, 6, 6, 7}, {9, 9, 9, 12}},
                 {95, {2, 1, 1, 1}, {2, 2, 2, 2}},         {100, {1, 1, 1, 1}, {1, 1, 1, 1}},
                 {25, {32, 22, 24, 28}, {34, 36, 36, 48}}, {1, {255, 255, 255, 255}, {255, 255, 255, 255}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Err e = {0};
        uint8_t *jpeg = NULL, *again = NULL;
        size_t size = 0, size_again = 0;
        bool sub = i % 2;
        EXPECT(image_encode_jpeg(&jpeg, &size, p.rgb, p.w, p.h, cases[i].quality, sub, "x", &e));
        EXPECT(image_encode_jpeg(&again, &size_again, p.rgb, p.w, p.h, cases[i].quality, sub, "x", &e));
        EXPECT(size == size_again && !memcmp(jpeg, again, size));
        EXPECT(!memcmp(jpeg, "\xFF\xD8\xFF\xE0\0\x10JFIF\0\1\1", 13));
        for (int k = 0; k < 4; k++) // SOI 2, APP0 18, then two DQT of 69: FF DB 00 43 id and 64 steps
            EXPECT(jpeg[25 + k] == cases[i].luma[k] && jpeg[94 + k] == cases[i].chroma[k]);
        EXPECT(!memcmp(jpeg + 158, "\xFF\xC0\0\x11\x08\0\x0B\0\x14\3\1", 11)); // SOF0, 11 rows of 20
        EXPECT_INT(jpeg[169], sub ? 0x22 : 0x11);
        EXPECT(jpeg[size - 2] == 0xFF && jpeg[size - 1] == 0xD9);
        free(jpeg), free(again);
    }
    free(p.rgb);
}

// The whole header of a picture of 20 x 11 in 4:2:0, tables and all, is what Pillow 13.0 with libjpeg-turbo writes
// (Image.save with quality=50 or 90, subsampling=2).
TEST(the_header_is_pillows_byte_for_byte) {
    static const struct {
        int quality;
        const char *digest;
    } cases[] = {{50, "db3c2a92155a3bc64c20d3da5cc74203ee07148d79cd88fe3cca4d11ac833c6a"},
                 {90, "64fb35c563ab23e16d9cb91d63b458cbfc13961c1f80053403f2878251ea522a"}};
    Picture p = make(NOISE, 20, 11, 1);
    for (int i = 0; i < 2; i++) {
        Err e = {0};
        uint8_t *jpeg = NULL;
        size_t size = 0;
        char digest[65] = "";
        Sha256 h;
        EXPECT(image_encode_jpeg(&jpeg, &size, p.rgb, p.w, p.h, cases[i].quality, true, "x", &e) && size > 623);
        sha256_start(&h), sha256_add(&h, jpeg, 623), sha256_finish(&h, digest);
        EXPECT_STR(digest, cases[i].digest);
        free(jpeg);
    }
    free(p.rgb);
}

TEST(a_written_file_is_the_encoded_bytes) {
    char path[] = "/tmp/test_jpeg_writeXXXXXX", *file = NULL;
    close(mkstemp(path));
    Err e = {0};
    Picture p = scene(96, 64, 5);
    uint8_t *jpeg = NULL;
    size_t size = 0, read = 0;
    EXPECT(image_write_jpeg(path, p.rgb, p.w, p.h, 80, true, &e));
    EXPECT(image_encode_jpeg(&jpeg, &size, p.rgb, p.w, p.h, 80, true, "x", &e));
    EXPECT(file_read(path, LIMIT_IMAGE_BYTES, "E-IM-01", &file, &read, &e));
    EXPECT(size == read && !memcmp(file, jpeg, size));
    int width = 0, height = 0, orientation = 0;
    const char *format = "";
    EXPECT(image_info(path, &width, &height, &format, &orientation, &e));
    EXPECT(width == 96 && height == 64 && !strcmp(format, "JPEG"));
    EXPECT(!image_write_jpeg("/tmp/no/such/folder/x.jpg", p.rgb, p.w, p.h, 80, true, &e));
    EXPECT_STR(e.code, "E-WR-02");
    unlink(path);
    free(file), free(jpeg), free(p.rgb);
}
