/**
 * The addresses and numbers that kernels and the host agree on: AssemblyScript and TypeScript both read this file, so it holds
 * constants alone. Addresses are byte offsets from the beginning of a memory.
 */

// ── the task at hand, in the memory that it is about ──────────────────────────────────────────────────────────────────

/** int64: the task's number in the upper half, the next unit to claim in the lower; `CLOSED` while a task is written down. */
export const CLAIM = 64;
export const CLOSED = 0x8000_0000;
/** int32: units that are done. */
export const DONE = 128;
/** int32: units of the task; the kernel. */
export const TOTAL = 192;
export const KERNEL = 196;
/** Address of the first thread's scratch memory; the other threads' follow it. */
export const SCRATCH = 200;
export const SCRATCH_BYTES = 0x8_0000;
/** The kernel's arguments: 32-bit words and 64-bit floats. */
export const ARGUMENTS = 256;
export const ARGUMENT_WORDS = 64;

// ── word of a new task to threads that wait, in the first memory ──────────────────────────────────────────────────────

/** int32: counts tasks. */
export const BELL = 640;
/** int32: index of the memory that the last task is about. */
export const PLACE = 644;
/** int32: threads that sleep until the bell rings. */
export const SLEEPERS = 704;
/** int32: messages sent to each thread, and whether all shall end. */
export const MESSAGES = 768;
export const ENDED = 772;
/** int32: a thread has failed, so that a task will not be done. */
export const FAILED = 776;

/** Constants of the module begin here, memory for tensors at `FIRST_FREE`. */
export const MODULE_DATA = 0x1000;
export const FIRST_FREE = 0x1_0000;

// ── kernels ───────────────────────────────────────────────────────────────────────────────────────────────────────────

export const READ = 0;
export const PREPARE_FLOATS = 1;
export const PREPARE_INTEGERS = 2;
export const MULTIPLY = 3;
export const ROTATE_AND_STORE = 4;
export const ATTEND = 5;
export const FIND_THRESHOLD = 6;
export const DRAW = 7;
export const RMS_NORM = 8;
export const LAYER_NORM = 9;
export const CAP_LOGITS = 10;

// ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Arguments of `ATTEND`: routines of assembled code, 0 for none; the others are attend.ts's. */
export const DOTS = 32;
export const WEIGHTED = 33;

// ── products ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Arguments of products; see product.ts. */
export const OUT = 0;
export const X = 1;
export const X_STRIDE = 2;
export const X_SCALES = 3;
export const TOKENS = 4;
export const ROWS = 5;
export const OUTPUTS = 6;
export const INPUTS = 7;
export const DATA = 8;
export const ROW_BYTES = 9;
export const FORM = 10;
export const SCALES = 11;
export const SCALE_FORM = 12;
export const SCALES_OF_ROW = 13;
export const SCALE_ROWS = 14;
export const SCALE_COLUMNS = 15;
export const ZEROS = 16;
export const BIAS = 17;
export const ADD_TO = 18;
export const ACTIVATION = 19;
export const GATED = 20;
export const UNIT_ROWS = 21;
/** float32, of `LIMITED_SWIGLU`. */
export const ALPHA = 22;
export const LIMIT = 23;
/** Of superblocks, whose `SCALES` are steps: float16, and whether there are minima; see `SuperblockWeight`. */
export const SUPERBLOCK_UNITS = 24;
export const MINIMA = 25;
/** Routines of assembled code, by their distance from its beginning; 0 for none. See assembled.ts. */
export const ONE = 26;
export const UNPACK = 27;
export const TILES = 28;
export const CONVERT = 29;
/** Of assembled code: float32 in a vector, columns of a part of a row with one scale, 0 for none, and columns of a panel. */
export const LANES = 30;
export const PART_COLUMNS = 31;
export const WIDE_COLUMNS = 32;

/** Forms of a matrix's elements. */
export const FLOAT32 = 0;
export const BFLOAT16 = 1;
export const FLOAT16 = 2;
export const FLOAT8 = 3;
export const INT8 = 4;
export const INT4 = 5;
/** Floats of four bits with a power of two for each 32. */
export const MXFP4 = 6;
/** Superblocks, whose codes are two a byte, or one. */
export const NIBBLE_SUPERBLOCKS = 7;
export const BYTE_SUPERBLOCKS = 8;
/** Columns of a superblock, and the code that stands for 0 where there are no minima. */
export const SUPERBLOCK = 256;
export const SUPERBLOCK_MIDDLE = 32;

/** Activations in a product's epilogue. */
export const NO_ACTIVATION = 0;
export const SILU = 1;
export const GELU_TANH = 2;
/** (up + 1) · gate · sigmoid(alpha · gate), of limited gates and ups; gated alone. */
export const LIMITED_SWIGLU = 3;

/** Rows of a matrix that are multiplied at once. */
export const PANEL_ROWS = 8;
/** The most inputs whose products are summed as integers before they become floats. A longer group is several such blocks. */
export const BLOCK = 128;
/** A block's inputs are padded with zeros to a multiple of this. */
export const CODES = 32;
/** Bytes of a block's scale and sums, of 8-bit codes; see prepare.ts. */
export const BLOCK_SCALES = 12;
/** The same of 4-bit codes. */
export const NIBBLE_SCALES = 64;
/** Where these have the sums of x over the block's first and last 16 columns, if it is of 32. */
export const INPUT_SUMS = 52;
/**
 * The value of the bytes of an input that 4-bit codes are multiplied by: HIGH · h + MIDDLE · m + l, with h and m of −127 to 127 and l of
 * −64 to 63. So 16 products with codes less a zero point, of −16 to 15, fit int16, and the sum of 32 inputs' fits int32.
 */
export const HIGH = 32512;
export const MIDDLE = 128;
/** The most inputs of a product that threads have scratch memory for. */
export const MAX_INPUTS = 0x1_0000;

// ── assembled code ────────────────────────────────────────────────────────────────────────────────────────────────────

/** The most columns of a panel of float32, and bytes of its rows, which do not share cache sets. */
export const WIDE = 512;
export const WIDE_STRIDE = 2112;
/** Parameters of `ONE`: words. */
export const ONE_X = 0;
export const ONE_ROW_BYTES = 1;
export const ONE_COUNT = 2;
export const ONE_ROWS = 3;
export const ONE_LAST = 7;
export const ONE_LANES = 8;
export const ONE_SCALES = 9;
export const ONE_SCALES_APART = 10;
export const ONE_PART_BYTES = 11;
/** Each part's scale, float32, has its offset so many bytes after it. */
export const OFFSETS_AFTER = 0x1_8000;
/** There is memory for so many. */
export const MOST_SCALES = OFFSETS_AFTER / 4;
/** Scales that are converted at once. */
export const CONVERTED = 16;
/**
 * Of `CONVERT`: scales or steps of superblocks, how many of the former or superblocks; float32 that scales, zero points or minima are
 * multiplied by; zero points, or units of superblocks.
 */
export const CONVERT_FROM = 0;
export const CONVERT_TO = 1;
export const CONVERT_COUNT = 2;
export const CONVERT_FACTOR = 3;
export const CONVERT_OTHERS = 4;
/** Of `UNPACK`. */
export const UNPACK_ROWS = 0;
export const UNPACK_BYTES = 8;
export const UNPACK_PANEL = 9;
export const UNPACK_SCALES = 10;
export const UNPACK_SCALES_APART = 11;
export const UNPACK_PART_BYTES = 12;
/** Of `TILES`. */
export const TILES_X = 0;
export const TILES_X_STRIDE = 1;
export const TILES_TOKENS = 2;
export const TILES_BYTES = 3;
export const TILES_PANEL = 4;
export const TILES_LANES = 5;
export const TILES_AHEAD = 6;
export const TILES_AHEAD_END = 7;
export const TILES_CONTINUE = 8;

/** Of attention's `DOTS`: keys that are multiplied at once, so that lists have room for as many more; parameters. */
export const DOTS_KEYS_AT_ONCE = 8;
export const DOTS_QUERY = 0;
export const DOTS_KEYS = 1;
export const DOTS_COUNT = 2;
export const DOTS_BYTES = 3;
export const DOTS_OUT = 4;
/** Of its `WEIGHTED`. */
export const WEIGHTED_VALUES = 0;
export const WEIGHTED_WEIGHTS = 1;
export const WEIGHTED_COUNT = 2;
export const WEIGHTED_BYTES = 3;
export const WEIGHTED_SUMS = 4;

// ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A row to draw from: offsets into its record. */
export const ROW_LOGITS = 0;
export const ROW_SEED_LOW = 4;
export const ROW_SEED_HIGH = 8;
export const ROW_POSITION = 12;
/** float64. */
export const ROW_TEMPERATURE = 16;
export const ROW_LOG_MIN_P = 24;
export const ROW_TOP_P = 32;
/** int32, 0 for none. */
export const ROW_TOP_K = 40;
/** int32: 1 where `FIND_THRESHOLD` has something to find. */
export const ROW_IS_CUT = 44;
/** float64, found by `FIND_THRESHOLD`. */
export const ROW_THRESHOLD = 48;
export const ROW_RECORD = 64;

/** Logits that one unit caps. */
export const CAP_PART = 0x4000;
/** Tokens of a row that one unit draws from. */
export const DRAW_PART = 0x4000;
/** A part's candidate: key float64, token int32. */
export const CANDIDATE_BYTES = 16;
