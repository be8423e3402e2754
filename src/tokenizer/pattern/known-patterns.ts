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

/**
 * Pre-tokenizer patterns of public models that take JavaScript's engine time linear in the text: a part of them either
 * matches at once, or matches what the parts before it have scanned in vain.
 */
export const KNOWN_PATTERNS: ReadonlySet<string> = new Set([
  // GPT-2 and what follows it.
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|${SYMBOLS}|\s+(?!\S)|\s+`,
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|${SYMBOLS}|\s+(?!\S)`,
  // cl100k and Llama 3; Qwen 2 and 3; Qwen 3.5.
  String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}{1,3}|${SYMBOLS}[\r\n]*|${BLANKS}`,
  String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}|${SYMBOLS}[\r\n]*|${BLANKS}`,
  String.raw`${CONTRACTIONS}|${BEFORE}\p{L}+|\p{N}+|${SYMBOLS}[\r\n]*|${BLANKS}`,
  String.raw`${CONTRACTIONS}|${BEFORE}[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|${BLANKS}`,
  // o200k and gpt-oss; Mistral's Tekken.
  cased(`${CONTRACTIONS}?`, String.raw`\p{N}{1,3}`),
  cased("", String.raw`\p{N}`),
  // DeepSeek.
  String.raw`\p{N}{1,3}`,
  `[${KANA}]+`,
  `${ASCII_SYMBOL}[A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|${BLANKS.replace("\\r\\n", "\r\n")}`,
  String.raw`${ASCII_SYMBOL}[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|${BLANKS}`,
  // Digits on their own.
  String.raw`\p{N}`,
  String.raw`\p{N}+`,
  String.raw`\d`,
  "[0-9]",
]);
