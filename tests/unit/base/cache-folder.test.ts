import { expect, setDefaultTimeout, test } from "bun:test";
import { cacheFolder } from "../../../src/base/cache-folder.ts";

setDefaultTimeout(300_000);

test("lies where the environment says", () => {
  expect(cacheFolder("kernels", { OCTAVO_CACHE_DIR: "/o", XDG_CACHE_HOME: "/x" })).toBe("/o/kernels");
  expect(cacheFolder("models", { XDG_CACHE_HOME: "/x" })).toBe("/x/octavo/models");
  expect(cacheFolder("kernels", {})).toEndWith("/.cache/octavo/kernels");
});
