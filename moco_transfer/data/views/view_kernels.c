/* The two loops of the fast pipeline that no library has in one pass: crop + antialiased resize + flip in uint8, and the colours of a view.
 *
 * Plain C for GCC and Clang, called through ctypes (native.py); nothing of Python is used. Where it was not built, native.py says so and
 * torch's operators do the same (view_colours.py and torch's interpolate); tests hold the two to each other and to torchvision.
 *
 * Shapes: S side of a view. Images and views are uint8 (rows, columns, 3), RGB, interleaved.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One copy for each kind of processor, chosen when the library is loaded. Compilers before GCC 12 do not know the levels by name and would
 * refuse the file. Clang gets one copy, for the smallest set. */
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 6 && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef uint8_t v4b __attribute__((vector_size(4)));

/* ---- resizing: Pillow's bilinear filter, a triangle whose half-width is the scale where that is above 1 ---- */

enum { MOST_ROWS = 5 };

typedef struct {
    int *first;     /* (size): first source position */
    int *count;     /* (size): how many positions have a weight */
    float *weights; /* (size, taps), zeros behind count */
    int taps;
} Filter;

static int filter_taps(int length, int size)
{
    double scale = (double)length / size;
    return 2 * (int)ceil(scale < 1 ? 1 : scale) + 1;
}

static void fill_filter(Filter *f, int length, int size, int mirrored)
{
    double scale = (double)length / size, support = scale < 1 ? 1 : scale;
    for (int i = 0; i < size; i++) {
        double centre = (i + 0.5) * scale, total = 0;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        int place = mirrored ? size - 1 - i : i;
        float *w = f->weights + (int64_t)place * f->taps;
        if (low < 0) low = 0;
        if (high > length) high = length;
        for (int k = 0; k < high - low; k++) {
            double value = 1 - fabs((low + k - centre + 0.5) / support);
            w[k] = (float)(value > 0 ? value : 0);
            total += w[k];
        }
        for (int k = 0; k < high - low; k++) w[k] = (float)(w[k] / total);
        for (int k = high - low; k < f->taps; k++) w[k] = 0;
        f->first[place] = low;
        f->count[place] = high - low;
    }
}

/* row (n) = 256 x the weighted sum of source rows, in 16 bits: exact to (number of rows) / 512 of a level. weights are x 65536.
 * Written out for each number of rows: compilers find the high half of a 16-bit product in this form alone. */
#define LINE(k) const uint8_t *restrict line##k = src + k * stride; const uint16_t w##k = weights[k];
#define TERM(k) (uint16_t)(((uint32_t)(uint16_t)(line##k[i] << 8) * w##k) >> 16)
#define SUM_ROWS(name, lines, rounding, terms) \
    INLINE void name(float *restrict row, const uint8_t *src, int64_t stride, const uint16_t *weights, int n) \
    { \
        lines for (int i = 0; i < n; i++) { uint16_t sum = (uint16_t)(rounding + terms); row[i] = sum; } \
    }
SUM_ROWS(sum_1_row, LINE(0), 0, TERM(0))
SUM_ROWS(sum_2_rows, LINE(0) LINE(1), 1, TERM(0) + TERM(1))
SUM_ROWS(sum_3_rows, LINE(0) LINE(1) LINE(2), 1, TERM(0) + TERM(1) + TERM(2))
SUM_ROWS(sum_4_rows, LINE(0) LINE(1) LINE(2) LINE(3), 2, TERM(0) + TERM(1) + TERM(2) + TERM(3))
SUM_ROWS(sum_5_rows, LINE(0) LINE(1) LINE(2) LINE(3) LINE(4), 2, TERM(0) + TERM(1) + TERM(2) + TERM(3) + TERM(4))

/* The same for any number of rows. */
INLINE void sum_many_rows(float *restrict row, const uint8_t *src, int64_t stride, const float *weights, int taps, int n)
{
    for (int i = 0; i < n; i++) row[i] = 0;
    for (int k = 0; k < taps; k++) {
        const uint8_t *restrict line = src + k * stride;
        const float w = weights[k] * 256;
        for (int i = 0; i < n; i++) row[i] += w * line[i];
    }
}

/* One output row (3 S + 1) from a row of source columns; `taps` is a constant at each call, so that the loop over it is unrolled. */
INLINE void sum_columns(uint8_t *out, const float *row, const Filter *f, int size, int taps)
{
    for (int x = 0; x < size; x++) {
        const float *source = row + 3 * f->first[x], *w = f->weights + (int64_t)x * f->taps;
        v4 sum = {0.5f, 0.5f, 0.5f, 0.5f};
        for (int k = 0; k < taps; k++) sum += w[k] * *(const v4 *)(source + 3 * k);
        v4b pixel = __builtin_convertvector(__builtin_convertvector(sum, v4i), v4b);
        memcpy(out + 3 * x, &pixel, 4); /* the next pixel overwrites the fourth byte */
    }
}

/* Working memory of this thread, kept for the next call: fresh pages for every view would cost as much as the arithmetic. */
static _Thread_local struct { char *memory; int64_t bytes; } kept;

static void *scratch(int64_t bytes)
{
    if (bytes > kept.bytes) {
        free(kept.memory);
        kept.memory = malloc(bytes);
        kept.bytes = kept.memory ? bytes : 0;
    }
    return kept.memory;
}

/* Cut (top, left, height, width) out of src, resize it to (size, size), mirror it if `flip`; out is (size, size, 3). 0, or -1: no memory. */
CLONES int mt_crop_resize(const uint8_t *src, int64_t stride, int top, int left, int height, int width, int size, int flip, uint8_t *out)
{
    int taps_y = filter_taps(height, size), taps_x = filter_taps(width, size), n = 3 * width, padded = n + 3 * taps_x + 4;
    char *memory = scratch(sizeof(float) * ((int64_t)size * (taps_y + taps_x) + padded) + (sizeof(int) * 4 + 3) * (int64_t)size + 1);
    if (!memory) return -1;
    float *floats = (float *)memory;
    float *row = floats + (int64_t)size * (taps_y + taps_x);
    int *ints = (int *)(row + padded);
    uint8_t *line = (uint8_t *)(ints + 4 * (int64_t)size);
    Filter y = {ints, ints + size, floats, taps_y}, x = {ints + 2 * size, ints + 3 * size, floats + (int64_t)size * taps_y, taps_x};
    fill_filter(&y, height, size, 0);
    fill_filter(&x, width, size, flip);
    for (int64_t i = 0; i < (int64_t)size * taps_x; i++) x.weights[i] /= 256;
    memset(row, 0, sizeof(float) * padded); /* what zero weights meet must be finite */
    int most = 0;
    for (int i = 0; i < size; i++) most = x.count[i] > most ? x.count[i] : most;
    src += top * stride + 3 * (int64_t)left;
    for (int i = 0; i < size; i++) {
        const uint8_t *lines = src + y.first[i] * stride;
        uint16_t w[MOST_ROWS + 1];
        for (int k = 0; k < y.count[i] && k <= MOST_ROWS; k++) w[k] = (uint16_t)(y.weights[(int64_t)i * taps_y + k] * 65535 + 0.5f);
        switch (y.count[i]) {
        case 1: sum_1_row(row, lines, stride, w, n); break;
        case 2: sum_2_rows(row, lines, stride, w, n); break;
        case 3: sum_3_rows(row, lines, stride, w, n); break;
        case 4: sum_4_rows(row, lines, stride, w, n); break;
        case 5: sum_5_rows(row, lines, stride, w, n); break;
        default: sum_many_rows(row, lines, stride, y.weights + (int64_t)i * taps_y, y.count[i], n);
        }
        switch (most) {
        case 1: case 2: sum_columns(line, row, &x, size, 2); break;
        case 3: sum_columns(line, row, &x, size, 3); break;
        case 4: sum_columns(line, row, &x, size, 4); break;
        case 5: sum_columns(line, row, &x, size, 5); break;
        case 6: sum_columns(line, row, &x, size, 6); break;
        default: sum_columns(line, row, &x, size, most);
        }
        memcpy(out + (int64_t)i * size * 3, line, 3 * (int64_t)size);
    }
    return 0;
}

/* ---- colours: torchvision's float formulas, on planar rows (3, n) of values 0-255 ---- */

enum { NOTHING, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, STEPS = 5 };
static const float TO_GREY[3] = {0.299f, 0.587f, 0.114f};

INLINE float clip(float v, float high) { return v < 0 ? 0 : v > high ? high : v; }
INLINE float grey_of(float r, float g, float b) { return TO_GREY[0] * r + TO_GREY[1] * g + TO_GREY[2] * b; }

/* One channel after a shift of the hue: V - clip(2C - |n C + t - 2C|, 0, C), where the distance counts round the circle of 6 C.
 * It is at most 9 C where the shift is at most C: one turn brings it home; else two. */
INLINE float hue_channel(float value, float chroma, float t, int turns)
{
    float d = fabsf(t - 2 * chroma);
    for (int turn = 0; turn < turns; turn++) {
        float e = fabsf(d - 6 * chroma);
        d = d < e ? d : e;
    }
    return value - clip(2 * chroma - d, chroma);
}

/* Hue, saturation, value as six straight pieces, everything times the chroma C: no division, no table. `shift` in sixths of the circle. */
INLINE void shift_hue(float *restrict r, float *restrict g, float *restrict b, int n, float shift, int turns)
{
    for (int i = 0; i < n; i++) {
        float red = r[i], green = g[i], blue = b[i];
        float high = red > green ? red : green, low = red < green ? red : green;
        high = high > blue ? high : blue;
        low = low < blue ? low : blue;
        float chroma = high - low;
        float t = green == high ? 2 * chroma + blue - red : 4 * chroma + red - green;
        t = (red == high ? green - blue : t) + shift * chroma;
        r[i] = hue_channel(high, chroma, t + 5 * chroma, turns);
        g[i] = hue_channel(high, chroma, t + 3 * chroma, turns);
        b[i] = hue_channel(high, chroma, t + chroma, turns);
    }
}

INLINE void apply_step(float *restrict r, float *restrict g, float *restrict b, int n, int code, float factor, float mean)
{
    if (code == BRIGHTNESS || code == CONTRAST) {
        float offset = code == CONTRAST ? (1 - factor) * mean : 0;
        for (int i = 0; i < n; i++) r[i] = clip(factor * r[i] + offset, 255), g[i] = clip(factor * g[i] + offset, 255), b[i] = clip(factor * b[i] + offset, 255);
    } else if (code == SATURATION) {
        for (int i = 0; i < n; i++) {
            float offset = (1 - factor) * grey_of(r[i], g[i], b[i]);
            r[i] = clip(factor * r[i] + offset, 255), g[i] = clip(factor * g[i] + offset, 255), b[i] = clip(factor * b[i] + offset, 255);
        }
    } else if (code == HUE) {
        if (fabsf(6 * factor) <= 1)
            shift_hue(r, g, b, n, 6 * factor, 1);
        else
            shift_hue(r, g, b, n, 6 * factor, 2);
    } else if (code == GREY) {
        for (int i = 0; i < n; i++) r[i] = g[i] = b[i] = grey_of(r[i], g[i], b[i]);
    }
}

INLINE void load_row(float *restrict r, float *restrict g, float *restrict b, const uint8_t *restrict line, int n)
{
    for (int i = 0; i < n; i++) r[i] = line[3 * i], g[i] = line[3 * i + 1], b[i] = line[3 * i + 2];
}

INLINE void store_interleaved(float *restrict out, const float *restrict r, const float *restrict g, const float *restrict b, int n, const float *by, const float *plus)
{
#pragma GCC ivdep
    for (int i = 0; i < n; i++) out[3 * i] = r[i] * by[0] + plus[0], out[3 * i + 1] = g[i] * by[1] + plus[1], out[3 * i + 2] = b[i] * by[2] + plus[2];
}

INLINE void store_row(float *restrict out, int64_t channel, int64_t column, float *const *rows, int n, const float *scale, const float *bias)
{
    const float by[3] = {scale[0], scale[1], scale[2]}, plus[3] = {bias[0], bias[1], bias[2]};
    if (column == 3) {
        store_interleaved(out, rows[0], rows[1], rows[2], n, by, plus);
        return;
    }
    for (int c = 0; c < 3; c++) {
        const float *restrict row = rows[c];
        float *restrict line = out + c * channel;
#pragma GCC ivdep
        for (int i = 0; i < n; i++) line[i] = row[i] * by[c] + plus[c];
    }
}

/* Everything up to the blur for one row: loaded, each step in its order. `until` is the number of steps. */
INLINE void colour_row(float *const *rows, const uint8_t *line, int n, const float *steps, int until, float mean)
{
    load_row(rows[0], rows[1], rows[2], line, n);
    for (int s = 0; s < until; s++) apply_step(rows[0], rows[1], rows[2], n, (int)steps[2 * s], steps[2 * s + 1], mean);
}

INLINE double sum_of(const float *restrict values, int n)
{
    float sums[16] = {0}; /* sixteen at once, always in the same order: the result does not depend on the processor's width */
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += values[i + j];
    double total = 0;
    for (int j = 0; j < 16; j++) total += sums[j];
    for (; i < n; i++) total += values[i];
    return total;
}

/* out = half[0] x centre + the sum over k of half[k] x (pairs[2 k] + pairs[2 k + 1]), three k at a time: written out, a pass over `out` for each
 * three, because compilers do not turn the loop over k inside out. `half` has zeros, and `pairs` something to multiply, up to a multiple of 3. */
INLINE void weigh_pairs(float *restrict out, const float *restrict centre, const float *const *pairs, const float *half, int reach, int n)
{
    for (int k = 1; k <= reach; k += 3) {
        const float *restrict a = pairs[2 * k], *restrict b = pairs[2 * k + 1], *restrict c = pairs[2 * k + 2];
        const float *restrict d = pairs[2 * k + 3], *restrict e = pairs[2 * k + 4], *restrict f = pairs[2 * k + 5];
        const float *restrict before = k == 1 ? centre : out;
        const float middle = k == 1 ? half[0] : 1, first = half[k], second = half[k + 1], third = half[k + 2];
#pragma GCC ivdep
        for (int i = 0; i < n; i++) out[i] = middle * before[i] + (first * (a[i] + b[i]) + second * (c[i] + d[i]) + third * (e[i] + f[i]));
    }
}

enum { MOST_REACH = 30 };

typedef struct {
    const uint8_t *view;
    int size, until;    /* side, number of steps */
    const float *steps; /* (until, 2) */
    float mean;         /* for contrast */
    float *out;
    int64_t channel, column;
    const float *scale, *bias;
} View;

INLINE void colour_view_row(const View *v, float *const *rows, int y)
{
    colour_row(rows, v->view + 3 * (int64_t)y * v->size, v->size, v->steps, v->until, v->mean);
}

INLINE void store_view_row(const View *v, float *const *rows, int y)
{
    store_row(v->out + (int64_t)y * v->size * v->column, v->channel, v->column, rows, v->size, v->scale, v->bias);
}

/* Each row is coloured, blurred along itself and kept until all rows that reach it are there; so everything stays in the nearest cache.
 * Edges are continued by their own value. memory: 3 rows, 3 lines of size + 2 thirds, a ring of (2 reach + 1) x 3 rows. */
INLINE void finish_blurred(const View *v, float *memory, const float *half, int reach)
{
    const int size = v->size, thirds = (reach + 2) / 3 * 3, kept = 2 * reach + 1;
    const float *pairs[2 * MOST_REACH + 2];
    float *rows[3], *lines[3], *ring = memory + 3 * size + 3 * (int64_t)(size + 2 * thirds);
    for (int c = 0; c < 3; c++) rows[c] = memory + (int64_t)c * size, lines[c] = memory + 3 * size + (int64_t)c * (size + 2 * thirds) + thirds;
    for (int y = 0; y < size + reach; y++) {
        if (y < size) {
            colour_view_row(v, lines, y);
            for (int c = 0; c < 3; c++) {
                float *line = lines[c];
                for (int i = 1; i <= thirds; i++) line[-i] = line[0], line[size - 1 + i] = line[size - 1];
                for (int k = 1; k <= thirds; k++) pairs[2 * k] = line - k, pairs[2 * k + 1] = line + k;
                weigh_pairs(ring + ((int64_t)(y % kept) * 3 + c) * size, line, pairs, half, thirds, size);
            }
        }
        const int middle = y - reach;
        if (middle < 0) continue;
        for (int c = 0; c < 3; c++) {
            for (int k = 1; k <= thirds; k++) {
                int distance = k < reach ? k : reach; /* behind reach the weights are zero */
                int above = middle - distance < 0 ? 0 : middle - distance, below = middle + distance >= size ? size - 1 : middle + distance;
                pairs[2 * k] = ring + ((int64_t)(above % kept) * 3 + c) * size, pairs[2 * k + 1] = ring + ((int64_t)(below % kept) * 3 + c) * size;
            }
            weigh_pairs(rows[c], ring + ((int64_t)(middle % kept) * 3 + c) * size, pairs, half, thirds, size);
        }
        store_view_row(v, rows, middle);
    }
}

/* Colours, blur and normalisation of one view (S, S, 3) -> float, channel c of pixel p at out[c * channel + p * column].
 *
 * steps: (STEPS, 2), code and factor of each operation in its order. half: (most + 1), the blur's kernel from its centre outwards, all
 * zeros for none. Value v becomes v * scale[c] + bias[c]. 0, or -1: no memory. */
CLONES int mt_finish_view(const uint8_t *view, int size, const float *steps, const float *half, int most, const float *scale, const float *bias, float *out,
                          int64_t channel, int64_t column)
{
    int reach = most < MOST_REACH ? most : MOST_REACH, contrast = STEPS;
    while (reach > 0 && half[reach] == 0) reach--;
    if (reach > size - 1) reach = size - 1;
    float kernel[MOST_REACH + 3] = {0};
    memcpy(kernel, half, sizeof(float) * (reach + 1));
    float *memory = scratch(sizeof(float) * ((int64_t)size * (6 + 3 * (2 * reach + 1)) + 6 * (MOST_REACH + 3)));
    if (!memory) return -1;
    float *rows[3] = {memory, memory + size, memory + 2 * size};
    View v = {view, size, STEPS, steps, 0, out, channel, column, scale, bias};
    for (int s = 0; s < STEPS; s++)
        if ((int)steps[2 * s] == CONTRAST) contrast = s;
    if (contrast < STEPS) {
        double total = 0;
        v.until = contrast;
        for (int y = 0; y < size; y++) {
            colour_view_row(&v, rows, y);
            total += TO_GREY[0] * sum_of(rows[0], size) + TO_GREY[1] * sum_of(rows[1], size) + TO_GREY[2] * sum_of(rows[2], size);
        }
        v.mean = (float)(total / ((double)size * size));
        v.until = STEPS;
    }
    if (reach > 0) {
        finish_blurred(&v, memory, kernel, reach);
        return 0;
    }
    for (int y = 0; y < size; y++) {
        colour_view_row(&v, rows, y);
        store_view_row(&v, rows, y);
    }
    return 0;
}
