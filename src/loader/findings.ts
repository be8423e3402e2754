import { type ModelDataError, UnsupportedModelError } from "../base/errors.ts";

const LISTED_NAMES = 5;

/** A tensor that is not as it should be, and the file that has it. */
export interface Finding {
  readonly path: string;
  readonly text: string;
}

/** Throws for the file of the first finding, if there is one, with the findings of that file. */
export function refuse(
  findings: readonly Finding[],
  what: string,
  RefusedError: typeof ModelDataError | typeof UnsupportedModelError,
): void {
  const [first] = findings;
  if (first === undefined) return;
  const here = findings.filter(({ path }) => path === first.path);
  const others = findings.length - here.length;
  const elsewhere = others === 0 ? "" : `; ${others} in other files`;
  throw new RefusedError(first.path, `${what}: ${listed(here.map(({ text }) => text))}${elsewhere}`);
}

/** Throws as `refuse` for tensors of dtypes that cannot be loaded. @param known those that can */
export function refuseDtypes(findings: readonly Finding[], known: readonly string[]): void {
  const names = known.join(", ").replace(/, (?=\w+$)/, " or ");
  refuse(findings, `tensors that are not ${names}`, UnsupportedModelError);
}

/** The first of some names. */
export function listed(names: readonly string[]): string {
  const more = names.length > LISTED_NAMES ? ` and ${names.length - LISTED_NAMES} more` : "";
  return names.slice(0, LISTED_NAMES).join(", ") + more;
}
