const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const BEFORE = String.raw`[^\r\n\p{L}\p{N}]?`;
const UPPER = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`;
const LOWER = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;
const SYMBOLS = String.raw` ?[^\s\p{L}\p{N}]+`;
const BLANKS = String.raw`\s*[\r\n]+|\s+(?!\S)|\s+`;
const ASCII_SYMBOL = String.raw`[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_${"`"}{|}~]`;
const KANA = "\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff";

/** Words in upper and lower case apart, as in o200k. */
const cased = (contractions: string, digits: string) =>
  [
    `${BEFORE}${UPPER}*${LOWER}+${contractions}`,
    `${BEFORE}${UPPER}+${LOWER}*${contractions}`,
    String.raw`${digits}|${SYMBOLS}[\r\n/]*|${BLANKS}`,
  ].join("|");

/** Patterns of families whose tokenizers other formats than tokenizer.json name. */
export const PATTERNS = {
  /** cl100k, too. */
  llama3: String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}{1,3}|${SYMBOLS}[\r\n]*|${BLANKS}`,
  /** Qwen 2, 2.5 and 3. */
  qwen2: String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}|${SYMBOLS}[\r\n]*|${BLANKS}`,
  qwen35: String.raw`${CONTRACTIONS}|${BEFORE}[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|${BLANKS}`,
  /** gpt-oss, too. */
  o200k: cased(`${CONTRACTIONS}?`, String.raw`\p{N}{1,3}`),
  tekken: cased("", String.raw`\p{N}`),
  /** Three that DeepSeek 3 splits by, one after another. */
  deepseekNumbers: String.raw`\p{N}{1,3}`,
  deepseekKana: `[${KANA}]+`,
  deepseekWords: `${ASCII_SYMBOL}[A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|${BLANKS.replace("\\r\\n", "\r\n")}`,
} as const;

/**
 * Pre-tokenizer patterns of public models that take JavaScript's engine time linear in the text: a part of them either
 * matches at once, or matches what the parts before it have scanned in vain.
 */
export const KNOWN_PATTERNS: ReadonlySet<string> = new Set([
  ...Object.values(PATTERNS),
  // GPT-2 and what follows it.
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|${SYMBOLS}|\s+(?!\S)|\s+`,
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|${SYMBOLS}|\s+(?!\S)`,
  // As Llama 3's, with numbers of any length.
  String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}+|${SYMBOLS}[\r\n]*|${BLANKS}`,
  // DeepSeek's words in another spelling.
  String.raw`${ASCII_SYMBOL}[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|${BLANKS}`,
  // Digits on their own.
  String.raw`\p{N}`,
  String.raw`\p{N}+`,
  String.raw`\d`,
  "[0-9]",
]);
