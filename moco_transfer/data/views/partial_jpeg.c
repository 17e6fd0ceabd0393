/* Decoding of a part of a JPEG with the system's libjpeg-turbo: only the columns and rows that the crops need are transformed.
 *
 * Called through ctypes (native.py); nothing of Python is used. Where it was not built, or where it says "not by me", the whole image is
 * decoded by decode.py's other decoders, which have the last word about every file: this one takes plain files alone (sequential Huffman
 * coding in one scan, grey or YCbCr in the three usual samplings) and gives up at the first warning.
 *
 * Where it succeeds, those decoders succeed as well, with the same pixels inside the part. Two things have to be looked after:
 *   - The columns next to a cut are upsampled from too few colour samples, by up to two pixels: MARGIN more are decoded on each side.
 *   - What follows the last row is not decoded. In sequential data nothing there is fatal to a decoder (wrong codes are warnings) except a
 *     marker that is none of a scan's, or the file's end. So the rest is searched: its first marker other than a restart must be the end of
 *     the image (EOI).
 *
 * Two thirds of the time go into the Huffman codes, which are read by this file's own loop where libjpeg's header with the entropy decoder's
 * place is installed (jpegint.h): a code and its value by one look into a table, from data without stuffed bytes; of what is left out the
 * lengths alone. It takes scans without restarts and gives up at the first thing out of order.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#if defined(__has_include) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#if __has_include(<jpegint.h>)
#include <jpegint.h>
#define OWN_HUFFMAN
#endif
#endif

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: others cannot skip rows and columns, or not exactly"
#endif

enum { MARGIN = 16, DONE = 0, NOT_BY_ME = 1, ROWS_AT_ONCE = 4 };
enum { STUFFED = 0x00, FIRST_RESTART = 0xD0, LAST_RESTART = 0xD7, END = 0xD9, FILL = 0xFF };

typedef struct {
    struct jpeg_error_mgr manager; /* first: libjpeg hands out its address */
    jmp_buf out_of_here;
} Errors;

static void give_up(j_common_ptr info) { longjmp(((Errors *)info->err)->out_of_here, 1); }
static void give_up_at_warnings(j_common_ptr info, int level)
{
    if (level < 0) give_up(info);
}
static void say_nothing(j_common_ptr info) { (void)info; }

static int is_plain(const struct jpeg_decompress_struct *info)
{
    if (info->progressive_mode || info->arith_code || info->data_precision != 8 || info->comps_in_scan != info->num_components) return 0;
    const jpeg_component_info *c = info->comp_info;
    if (info->num_components == 1) return info->jpeg_color_space == JCS_GRAYSCALE && c[0].h_samp_factor == 1 && c[0].v_samp_factor == 1;
    if (info->num_components != 3 || info->jpeg_color_space != JCS_YCbCr) return 0;
    for (int i = 1; i < 3; i++)
        if (c[i].h_samp_factor != 1 || c[i].v_samp_factor != 1) return 0;
    return (c[0].h_samp_factor == 1 || c[0].h_samp_factor == 2) && (c[0].v_samp_factor == 1 || (c[0].v_samp_factor == 2 && c[0].h_samp_factor == 2));
}

/* Whether a scan's data goes on to the end of the image. `marker` has been read already; 0 for none. */
static int ends_well(const uint8_t *place, size_t bytes, int marker)
{
    const uint8_t *end = place + bytes;
    if (marker == END) return 1;
    if (marker != 0 && (marker < FIRST_RESTART || marker > LAST_RESTART)) return 0;
    while (place < end && (place = memchr(place, FILL, end - place)) != NULL && place + 1 < end) {
        int next = place[1];
        if (next == END) return 1;
        if (next == FILL)
            place += 1;
        else if (next == STUFFED || (next >= FIRST_RESTART && next <= LAST_RESTART))
            place += 2;
        else
            return 0;
    }
    return 0;
}

#ifdef OWN_HUFFMAN

/* ---- Huffman codes ---- */

enum { LOOK = 10, TABLES = 4, PADDING = 512, BLOCK_END = 63, MOST_KEPT = 4 << 20 }; /* PADDING: no block is longer (64 times a code of 16 bits and 15 more), nor a load behind it */

/* What LOOK bits begin with; a length of 0 says that they do not tell. */
typedef struct {
    struct {
        int16_t value; /* of the coefficient, 0 for none */
        uint8_t zeros; /* coefficients that are zero before it; BLOCK_END: all that are left */
        uint8_t length; /* bits of code and value */
    } whole[1 << LOOK];
    struct { uint8_t zeros, length; } passed[1 << LOOK]; /* the same without the value, of which not all bits need be seen */
    struct { uint8_t symbol, length; } code[1 << LOOK]; /* the code alone */
    int32_t beyond[18]; /* first number of the length's bits that is no code of this length or a shorter one, from the upper end of 16 */
    int32_t shift[17];  /* of a code of this length: its place in the symbols, less the code */
    const uint8_t *symbols;
} Codes;

typedef struct {
    const uint8_t *place; /* next byte to load */
    uint64_t bits;        /* the next one is the highest */
    int count;            /* how many of them are loaded */
} Bits;

typedef struct {
    Bits bits;
    const uint8_t *end; /* of the data, before the padding */
    int dc[MAX_COMPS_IN_SCAN];
    int column, columns, first, last; /* of the next MCU; of a row of them; of which the coefficients are wanted */
    Codes *dc_codes[TABLES], *ac_codes[TABLES];
    Codes tables[2 * TABLES];
} Reader;

/* Coefficients' places in a block; behind them the last one, as in libjpeg for runs that damaged data make too long. */
static const uint8_t ORDER[128] = {
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

/* The number that `size` bits stand for: the lower half of their range is negative. */
static inline int extended(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

/* 0, or -1 for a table that is none. */
static int fill_codes(Codes *codes, const JHUFF_TBL *table, int is_ac)
{
    int code = 0, place = 0;
    memset(codes->whole, 0, sizeof codes->whole);
    memset(codes->passed, 0, sizeof codes->passed);
    memset(codes->code, 0, sizeof codes->code);
    codes->symbols = table->huffval;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        codes->shift[length] = place - code;
        for (int i = 0; i < table->bits[length]; i++, place++, code++) {
            if (place > 255 || code >= 1 << length) return -1;
            int symbol = table->huffval[place], zeros = is_ac ? symbol >> 4 : 0, size = is_ac ? symbol & 15 : symbol;
            if (size > 15) return -1;
            if (length > LOOK) continue;
            if (is_ac && size == 0 && zeros < 15) zeros = BLOCK_END;
            int rest = LOOK - length, first = code << rest;
            for (int j = first; j < first + (1 << rest); j++) {
                codes->code[j].symbol = (uint8_t)symbol, codes->code[j].length = (uint8_t)length;
                codes->passed[j].zeros = (uint8_t)zeros, codes->passed[j].length = (uint8_t)(length + size);
                if (size > rest) continue;
                codes->whole[j].value = (int16_t)(size > 0 ? extended((j - first) >> (rest - size), size) : 0);
                codes->whole[j].zeros = (uint8_t)zeros, codes->whole[j].length = (uint8_t)(length + size);
            }
        }
        codes->beyond[length] = code << (16 - length);
    }
    return 0;
}

/* At least 56 bits. */
static inline void load_bits(Bits *r)
{
    uint64_t next;
    memcpy(&next, r->place, 8);
    r->bits |= __builtin_bswap64(next) >> r->count;
    r->place += (63 - r->count) >> 3;
    r->count |= 56;
}

static inline void drop_bits(Bits *r, int count) { r->bits <<= count, r->count -= count; }

/* The next code's symbol, -1 if it is none. 56 bits are loaded. */
static inline int read_symbol(Bits *r, const Codes *codes)
{
    int ahead = (int)(r->bits >> (64 - LOOK)), length = codes->code[ahead].length, symbol = codes->code[ahead].symbol;
    if (length == 0) {
        ahead = (int)(r->bits >> 48);
        for (length = LOOK + 1; length <= 16 && ahead >= codes->beyond[length]; length++) {}
        if (length > 16) return -1;
        symbol = codes->symbols[(codes->shift[length] + (ahead >> (16 - length))) & 255];
    }
    drop_bits(r, length);
    return symbol;
}

static inline int read_value(Bits *r, int size)
{
    int value = extended((int)(r->bits >> (64 - size)), size);
    drop_bits(r, size);
    return value;
}

/* A code that the tables do not tell at one look, or its value: where the next one's coefficient is, or -1. */
static inline int read_long_code(Bits *r, const Codes *codes, int k, JCOEF *block)
{
    load_bits(r);
    int symbol = read_symbol(r, codes), size = symbol & 15;
    if (symbol < 0) return -1;
    if (size == 0) return k + 1 + (symbol >> 4 == 15 ? 15 : BLOCK_END);
    k += symbol >> 4;
    int value = read_value(r, size);
    if (block) block[ORDER[k]] |= (JCOEF)value;
    return k + 1;
}

/* The coefficients behind the first; `block` NULL: passed over. 0, or -1. Nearly everything comes from the tables and nothing is asked about it
 * but whether the block ends: a wrong guess of the processor costs as much as three codes. */
static inline __attribute__((always_inline)) int read_ac(Bits *bits, const Codes *codes, JCOEF *block)
{
    Bits r = *bits; /* in registers */
    int k = 1;
    while (k < 64) {
        load_bits(&r);
        for (int i = 0; i < (block ? 5 : 2) && k < 64; i++) { /* of LOOK bits each, or at most LOOK + 15 */
            int ahead = (int)(r.bits >> (64 - LOOK)), length = block ? codes->whole[ahead].length : codes->passed[ahead].length;
            if (length == 0) {
                k = read_long_code(&r, codes, k, block);
                if (k < 0) return -1;
                break;
            }
            k += block ? codes->whole[ahead].zeros : codes->passed[ahead].zeros;
            if (block) block[ORDER[k]] |= codes->whole[ahead].value; /* what was zero; by zero where there is no value */
            k++;
            drop_bits(&r, length);
        }
    }
    *bits = r;
    return 0;
}

/* In the place of libjpeg's function: the next MCU's blocks, which are zeros before; none to be given, if it is passed over. */
static boolean read_mcu(j_decompress_ptr info, JBLOCKROW *blocks)
{
    Reader *r = info->client_data;
    if (r->column < r->first || r->column >= r->last) blocks = NULL;
    if (++r->column == r->columns) r->column = 0;
    for (int i = 0; i < info->blocks_in_MCU; i++) {
        int c = info->MCU_membership[i];
        const jpeg_component_info *component = info->cur_comp_info[c];
        load_bits(&r->bits);
        int size = read_symbol(&r->bits, r->dc_codes[component->dc_tbl_no]);
        if (size < 0) give_up((j_common_ptr)info);
        if (size > 0) r->dc[c] += read_value(&r->bits, size);
        if (r->dc[c] != (int16_t)r->dc[c]) give_up((j_common_ptr)info);
        if (blocks) (*blocks[i])[0] = (JCOEF)r->dc[c];
        const Codes *codes = r->ac_codes[component->ac_tbl_no];
        if (blocks ? read_ac(&r->bits, codes, *blocks[i]) : read_ac(&r->bits, codes, NULL)) give_up((j_common_ptr)info);
        if (r->bits.place - (r->bits.count >> 3) > r->end) give_up((j_common_ptr)info);
    }
    return TRUE;
}

/* Copy a scan's data without stuffed bytes. How many, or -1 if its first marker is none of its end. */
static int64_t unstuff(const uint8_t *place, size_t bytes, uint8_t *out)
{
    const uint8_t *end = place + bytes;
    uint8_t *start = out;
    while (place < end) {
        const uint8_t *next = memchr(place, FILL, end - place);
        if (next == NULL) return -1;
        memcpy(out, place, next - place);
        out += next - place;
        do next++;
        while (next < end && *next == FILL);
        if (next == end) return -1;
        if (*next == END) return out - start;
        if (*next != STUFFED) return -1;
        *out++ = FILL;
        place = next + 1;
    }
    return -1;
}

/* Working memory of this thread, kept for the next image, unless it was for a very large one. */
static _Thread_local struct { Reader *memory; size_t bytes; } kept;

static Reader *working_memory(size_t bytes)
{
    if (bytes > kept.bytes || kept.bytes > MOST_KEPT) {
        free(kept.memory);
        kept.memory = malloc(bytes);
        kept.bytes = kept.memory ? bytes : 0;
    }
    return kept.memory;
}

/* Have read_mcu read this scan, which is about to begin. Columns [offset, offset + info->output_width) will be wanted. */
static void read_codes_ourselves(j_decompress_ptr info, JDIMENSION offset)
{
    size_t bytes = info->src->bytes_in_buffer;
    Reader *r = working_memory(sizeof(Reader) + bytes + PADDING);
    if (r == NULL) give_up((j_common_ptr)info);
    uint8_t *data = (uint8_t *)(r + 1);
    int64_t length = unstuff(info->src->next_input_byte, bytes, data);
    if (length < 0) give_up((j_common_ptr)info);
    memset(data + length, 0, PADDING);
    r->bits = (Bits){data, 0, 0}, r->end = data + length;
    r->column = 0, r->columns = info->MCUs_per_row;
    memset(r->dc, 0, sizeof r->dc);
    memset(r->dc_codes, 0, sizeof r->dc_codes);
    memset(r->ac_codes, 0, sizeof r->ac_codes);
    for (int c = 0; c < info->comps_in_scan; c++) {
        int dc = info->cur_comp_info[c]->dc_tbl_no, ac = info->cur_comp_info[c]->ac_tbl_no;
        if (dc < 0 || dc >= TABLES || ac < 0 || ac >= TABLES || !info->dc_huff_tbl_ptrs[dc] || !info->ac_huff_tbl_ptrs[ac]) give_up((j_common_ptr)info);
        if (!r->dc_codes[dc] && fill_codes(r->dc_codes[dc] = &r->tables[dc], info->dc_huff_tbl_ptrs[dc], 0)) give_up((j_common_ptr)info);
        if (!r->ac_codes[ac] && fill_codes(r->ac_codes[ac] = &r->tables[TABLES + ac], info->ac_huff_tbl_ptrs[ac], 1)) give_up((j_common_ptr)info);
    }
    JDIMENSION across = info->max_h_samp_factor * DCTSIZE; /* one more on each side, so that nothing hangs on how libjpeg counts them */
    r->first = (int)(offset / across) - 1, r->last = (int)((offset + info->output_width) / across) + 2;
    info->client_data = r;
    info->entropy->decode_mcu = read_mcu;
}

#endif

/* Decode rows [top, top + rows) and columns [left, left + columns) of a JPEG to their places in out (height, width, 3), RGB. What is in
 * out elsewhere is undefined afterwards. height and width: what the caller found in the header. 0, or 1: not by this decoder. */
int mt_decode_region(const uint8_t *data, int64_t bytes, int height, int width, int top, int left, int rows, int columns, uint8_t *out)
{
    struct jpeg_decompress_struct info;
    Errors errors;
    if (top < 0 || left < 0 || rows < 1 || columns < 1 || rows > height - top || columns > width - left) return NOT_BY_ME;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = give_up;
    errors.manager.emit_message = give_up_at_warnings;
    errors.manager.output_message = say_nothing;
    info.mem = NULL; /* jpeg_destroy may be called before jpeg_create has come that far */
    if (setjmp(errors.out_of_here)) {
        jpeg_destroy_decompress(&info);
        return NOT_BY_ME;
    }
    info.client_data = NULL;
    jpeg_create_decompress(&info); /* which leaves err and client_data as they are */
    jpeg_mem_src(&info, (unsigned char *)data, (unsigned long)bytes);
    if (jpeg_read_header(&info, TRUE) != JPEG_HEADER_OK || (int64_t)info.image_height != height || (int64_t)info.image_width != width || !is_plain(&info))
        give_up((j_common_ptr)&info);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    if ((int64_t)info.output_height != height || (int64_t)info.output_width != width || info.output_components != 3) give_up((j_common_ptr)&info);

    int from = left < MARGIN ? 0 : left - MARGIN, to = width - left - columns < MARGIN ? width : left + columns + MARGIN;
    JDIMENSION offset = from, across = to - from, above = top < MARGIN ? 0 : top - MARGIN;
    if (offset > 0 || across < info.output_width) jpeg_crop_scanline(&info, &offset, &across); /* moves offset to the left, to a block's edge */
    if (offset > (JDIMENSION)from || (int64_t)offset + info.output_width > width || (int64_t)offset + info.output_width < to) give_up((j_common_ptr)&info);
#ifdef OWN_HUFFMAN
    if (info.restart_interval == 0) read_codes_ourselves(&info, offset); /* which has then seen that the scan ends well */
#endif
    if (above > 0 && jpeg_skip_scanlines(&info, above) != above) give_up((j_common_ptr)&info);
    while (info.output_scanline < (JDIMENSION)(top + rows)) {
        JSAMPROW lines[ROWS_AT_ONCE];
        JDIMENSION count = top + rows - info.output_scanline;
        if (count > ROWS_AT_ONCE) count = ROWS_AT_ONCE;
        for (JDIMENSION i = 0; i < count; i++) lines[i] = out + 3 * ((int64_t)(info.output_scanline + i) * width + offset);
        if (jpeg_read_scanlines(&info, lines, count) == 0) give_up((j_common_ptr)&info);
    }
    if (info.client_data == NULL && !ends_well(info.src->next_input_byte, info.src->bytes_in_buffer, info.unread_marker)) give_up((j_common_ptr)&info);
    jpeg_destroy_decompress(&info);
    return DONE;
}
