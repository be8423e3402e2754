/** JSON with objects as maps. Numbers that are not exact integers are NaN: nothing that is read here has fractions. */
export type StrictJson = string | number | boolean | null | readonly StrictJson[] | StrictJsonObject;
export interface StrictJsonObject extends ReadonlyMap<string, StrictJson> {}

const MAX_DEPTH = 16;

/**
 * Parses RFC 8259 JSON whose outermost value is an object. Unlike `JSON.parse` it refuses duplicate keys, at any
 * level, and does not round integers above 2^53. Only whitespace may follow the object, and nothing precede it.
 * @throws SyntaxError saying what is wrong and where.
 */
export function parseStrictJson(text: string): StrictJsonObject {
  let at = 0;

  const fail = (what: string): never => {
    throw new SyntaxError(`${what} at character ${at}`);
  };
  const skipSpace = () => {
    for (;;) {
      const c = text.charCodeAt(at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
      at++;
    }
  };
  const expect = (char: string) => {
    skipSpace();
    if (text[at] !== char) fail(`expected "${char}"`);
    at++;
  };
  /** Whether `char` is next; consumes it if so. */
  const accept = (char: string): boolean => {
    skipSpace();
    if (text[at] !== char) return false;
    at++;
    return true;
  };

  const string = (): string => {
    expect('"');
    const start = at;
    let escaped = false;
    for (; ; at++) {
      const c = text.charCodeAt(at);
      if (c === 0x22) break;
      if (!(c >= 0x20)) fail("unterminated string");
      if (c !== 0x5c) continue;
      escaped = true;
      at++;
    }
    const raw = text.slice(start, at++);
    let value = raw;
    if (escaped) {
      try {
        value = JSON.parse(`"${raw}"`) as string;
      } catch {
        fail("bad escape in the string that ends");
      }
    }
    if (!value.isWellFormed()) fail("lone surrogate in the string that ends");
    return value;
  };
  const number = (): number => {
    const lexeme = /-?(?:0|[1-9][0-9]{0,400})(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,9})?/y;
    lexeme.lastIndex = at;
    const found = lexeme.exec(text)?.[0] ?? fail("unexpected text");
    at += found.length;
    const value = Number(found);
    return /^-?[0-9]+$/.test(found) && Number.isSafeInteger(value) ? value : Number.NaN;
  };
  const literal = <T>(word: string, value: T): T => {
    if (!text.startsWith(word, at)) fail("unexpected text");
    at += word.length;
    return value;
  };
  const array = (depth: number): StrictJson[] => {
    at++;
    const items: StrictJson[] = [];
    if (accept("]")) return items;
    do items.push(value(depth + 1));
    while (accept(","));
    expect("]");
    return items;
  };
  const object = (depth: number): StrictJsonObject => {
    expect("{");
    const entries = new Map<string, StrictJson>();
    if (accept("}")) return entries;
    do {
      const key = string();
      if (entries.has(key)) fail(`duplicate key ${JSON.stringify(key.slice(0, 100))}`);
      expect(":");
      entries.set(key, value(depth + 1));
    } while (accept(","));
    expect("}");
    return entries;
  };
  const value = (depth: number): StrictJson => {
    if (depth > MAX_DEPTH) fail(`nesting deeper than ${MAX_DEPTH}`);
    skipSpace();
    switch (text[at]) {
      case "{":
        return object(depth);
      case "[":
        return array(depth);
      case '"':
        return string();
      case "t":
        return literal("true", true);
      case "f":
        return literal("false", false);
      case "n":
        return literal("null", null);
      default:
        return number();
    }
  };

  if (text[0] !== "{") fail('expected "{"');
  const root = object(1);
  skipSpace();
  if (at !== text.length) fail("text after the object");
  return root;
}
