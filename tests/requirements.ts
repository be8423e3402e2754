import { describe, test } from "bun:test";
import { DeviceError, messageOf } from "../src/base/errors.ts";

/** Set to 1 where tests that need it must not be skipped. */
export type Requirement =
  | "OCTAVO_REQUIRE_CHROMIUM"
  | "OCTAVO_REQUIRE_GPU"
  | "OCTAVO_REQUIRE_GPUS"
  | "OCTAVO_REQUIRE_NVRTC";

/** What `open` finds on this machine, or why it finds nothing. */
export function available<T extends object>(open: () => T): T | string {
  try {
    return open();
  } catch (error) {
    if (error instanceof DeviceError) return messageOf(error);
    throw error;
  }
}

/**
 * A group of tests of something that not every machine has. Where it is missing, the group is one skipped test that says
 * why, or one that fails where the environment requires it.
 */
export function describeWith<T extends object>(
  requirement: Requirement,
  found: T | string,
  title: string,
  body: (found: T) => void,
): void {
  if (typeof found !== "string") describe(title, () => body(found));
  else if (process.env[requirement] === "1")
    test(`${title} (${requirement}=1)`, () => {
      throw new Error(found);
    });
  else test.skip(`${title} (skipped: ${found})`, () => {});
}
