import type { Weight } from "../../backend/weight.ts";
import type { MatrixSpec } from "../weight-scheme.ts";
import { float8Weight, type GetParameter } from "./quantised-weight.ts";
import { rowsThatFit } from "./rows-that-fit.ts";
import { BLOCK } from "./stored-float8.ts";

/** The weights that share a factor: those of an output channel, or of a block of 128 × 128. */
export type OnlineFloat8 = "channel" | "block";

/** A matrix of floats, quantised to float8 while it is loaded. Ranks have the factors of their own part. */
export function onlineFloat8(
  { name, parts, columns, columnSpan }: MatrixSpec,
  shape: readonly [n: number, k: number],
  granularity: OnlineFloat8,
  get: GetParameter,
): Weight {
  const isBlock = granularity === "block";
  const blockRows = isBlock ? rowsThatFit(parts.map(({ rowSpan }) => rowSpan)) : 1;
  const blockColumns = isBlock ? BLOCK : shape[1];
  const read = (part: "codes" | "scales") =>
    parts.map(({ source, rows, rowSpan }) => ({
      ...{ name: `${source}.weight`, shape: [rows, columns] },
      reading: {
        ...({ kind: "float8", part, blockRows, blockColumns, rows: rowSpan, columns: columnSpan } as const),
      },
    }));
  return float8Weight(
    get,
    name,
    { shape, blockRows, blockColumns },
    { codes: read("codes"), scales: read("scales") },
  );
}
