// fuzz_image.c - libFuzzer harness of the picture readers (make fuzz).
//
// What it asserts beyond "no sanitizer finding":
//   - what the structural check accepts, the decoder finishes, with the size that the header says;
//   - a refusal is one E-IM error with code, expected, found and remedy, and leaves no pixels behind;
//   - the headers alone give the same size and orientation as the whole check;
//   - the stream that the check writes for the JPEG decoder is accepted by the check, and is its own clean form.
// PNG checksums are mended first (except for every other input), since no mutation gets past them.
// Read before: ../io/image_check.c, ../io/image.c.
#include "../surgr1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void mend_checksums(uint8_t *p, size_t n) {
    for (size_t at = 8; n >= 12 && at <= n - 12;) {
        uint64_t length = (uint64_t)p[at] << 24 | (uint64_t)p[at + 1] << 16 | (uint64_t)p[at + 2] << 8 | p[at + 3];
        if (length > n - at - 12) return;
        uint32_t crc = png_crc(0, p + at + 4, (size_t)length + 4);
        for (size_t i = 0; i < 4; i++) p[at + 8 + (size_t)length + i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + (size_t)length;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    log_setup(LOG_QUIET, false);
    uint8_t *copy = malloc(size ? size : 1); // exactly as long as the input
    CHECK(copy, "no memory");
    if (size) memcpy(copy, data, size);
    if (size && copy[0] == 0x89 && size % 2) mend_checksums(copy, size);
    ImageFacts whole, headers, again;
    Image im;
    Err e = {0}, e2 = {0};
    bool header_ok = image_check(&headers, copy, size, "x", true, &e2);
    if (header_ok && (int64_t)headers.width * headers.height > 1 << 20) { // large pictures only take time
        free(copy);
        return 0;
    }
    bool accepted = image_check(&whole, copy, size, "x", false, &e);
    if (accepted) {
        CHECK(header_ok && headers.width == whole.width && headers.height == whole.height, "another size");
        CHECK(!strcmp(headers.format, whole.format), "another format");
        if (whole.jpeg) {
            CHECK(image_check(&again, whole.jpeg, whole.jpeg_size, "clean", false, &e), "%s", e.found);
            CHECK(again.jpeg_size == whole.jpeg_size && !memcmp(again.jpeg, whole.jpeg, whole.jpeg_size), "not clean");
            free(again.jpeg);
        }
        free(whole.jpeg);
    } else {
        CHECK(!strncmp(e.code, "E-IM-0", 6) && e.expected[0] && e.found[0] && e.todo[0], "code \"%s\"", e.code);
    }
    Err e3 = {0};
    ImageOptions options = {.alpha_white = size & 2, .apply_orientation = size & 4};
    bool decoded = image_decode(&im, copy, size, "x", options, &e3);
    CHECK(decoded == accepted && decoded == (im.rgb != NULL), "the check said %d, the decoder %d (%s)", accepted,
          decoded, e3.found);
    if (decoded) {
        bool turned = options.apply_orientation && im.orientation >= 5;
        CHECK(im.width == (turned ? whole.height : whole.width) && im.height == (turned ? whole.width : whole.height),
              "another size");
    }
    image_free(&im);
    free(copy);
    return 0;
}
