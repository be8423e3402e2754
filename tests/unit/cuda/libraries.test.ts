import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import {
  builtinsOf,
  installHint,
  type LibraryName,
  libraryCandidates,
  type SearchHost,
} from "../../../src/cuda/libraries.ts";

setDefaultTimeout(300_000);

let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "octavo-libraries-"));
});
afterEach(() => rmSync(root, { recursive: true }));

function place(...paths: string[]): void {
  for (const path of paths) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), "");
  }
}

function host(env: Record<string, string> = {}): SearchHost {
  return { env, root, cwd: join(root, "work"), home: join(root, "home/me") };
}

/** The files found, relative to the made-up root, without what is left to the loader. */
function found(name: LibraryName, at: SearchHost, maxMajor?: number): string[] {
  return libraryCandidates(name, at, maxMajor)
    .filter(({ source }) => source !== "dynamic loader")
    .map(({ path }) => path.slice(root.length + 1));
}

describe("layouts", () => {
  test("a system toolkit, with its full version read through the link", () => {
    const lib = "usr/local/cuda/targets/x86_64-linux/lib";
    place(`${lib}/libnvrtc.so.12.9.86`, `${lib}/libnvrtc-builtins.so.12.9.86`, `${lib}/libnvrtc.alt.so.12`);
    symlinkSync("libnvrtc.so.12.9.86", join(root, lib, "libnvrtc.so.12"));
    symlinkSync("libnvrtc-builtins.so.12.9.86", join(root, lib, "libnvrtc-builtins.so.12.9"));
    symlinkSync("targets/x86_64-linux/lib", join(root, "usr/local/cuda/lib64"));
    const [first] = libraryCandidates("nvrtc", host());
    expect(first).toMatchObject({
      path: join(root, "usr/local/cuda/lib64/libnvrtc.so.12"),
      source: "/usr/local/cuda",
      version: "12.9.86",
      major: 12,
    });
    expect(builtinsOf(first!)).toStartWith(join(root, "usr/local/cuda/lib64/libnvrtc-builtins.so.12.9"));
  });

  test("pip for CUDA 12: a folder a library", () => {
    const nvidia = "venv/lib/python3.11/site-packages/nvidia";
    place(
      `${nvidia}/cuda_nvrtc/lib/libnvrtc.so.12`,
      `${nvidia}/cuda_nvrtc/lib/libnvrtc-builtins.so.12.8`,
      `${nvidia}/cublas/lib/libcublasLt.so.12`,
      `${nvidia}/nccl/lib/libnccl.so.2`,
    );
    const at = host({ VIRTUAL_ENV: join(root, "venv") });
    expect(found("nvrtc", at)).toEqual([`${nvidia}/cuda_nvrtc/lib/libnvrtc.so.12`]);
    expect(found("cublasLt", at)).toEqual([`${nvidia}/cublas/lib/libcublasLt.so.12`]);
    expect(found("nccl", at)).toEqual([`${nvidia}/nccl/lib/libnccl.so.2`]);
    expect(builtinsOf(libraryCandidates("nvrtc", at)[0]!)).toBe(
      join(root, nvidia, "cuda_nvrtc/lib/libnvrtc-builtins.so.12.8"),
    );
  });

  test.each([
    [
      "the python3 on PATH",
      "py/lib/python3.12/site-packages",
      { PATH: "/nowhere:ROOT/py/bin" },
      "py/bin/python3",
    ],
    ["~/.local", "home/me/.local/lib/python3.10/site-packages", {}, undefined],
    ["a .venv in the working folder", "work/.venv/lib/python3.13/site-packages", {}, undefined],
    ["an environment below /opt", "opt/app/.venv/lib/python3.12/site-packages", {}, undefined],
    ["Debian's dist-packages", "usr/local/lib/python3.12/dist-packages", {}, undefined],
    ["conda's Python", "conda/lib/python3.12/site-packages", { CONDA_PREFIX: "ROOT/conda" }, undefined],
  ])("pip for CUDA 13 in %s", (_name, packages, env: Record<string, string>, extra) => {
    const library = `${packages}/nvidia/cu13/lib/libcublasLt.so.13`;
    place(library, ...(extra ? [extra] : []));
    const resolved = Object.entries(env).map(([key, value]) => [key, value.replaceAll("ROOT", root)]);
    expect(found("cublasLt", host(Object.fromEntries(resolved)))).toEqual([library]);
  });

  test("conda", () => {
    place("conda/lib/libnvrtc.so.12", "conda/lib/libcublasLt.so.12.8.4.1");
    const at = host({ CONDA_PREFIX: join(root, "conda") });
    expect(found("nvrtc", at)).toEqual(["conda/lib/libnvrtc.so.12"]);
    expect(libraryCandidates("cublasLt", at)[0]).toMatchObject({ version: "12.8.4.1", major: 12 });
  });
});

test("explicit homes come first, then the toolkit, LD_LIBRARY_PATH, Python, conda, the loader", () => {
  const file = "libnvrtc.so.12";
  place(
    `octavo/${file}`,
    `home-of-cuda/lib64/${file}`,
    `usr/local/cuda/lib64/${file}`,
    `ld/${file}`,
    `venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/${file}`,
    `conda/lib/${file}`,
  );
  const at = host({
    OCTAVO_CUDA_HOME: join(root, "octavo"),
    CUDA_HOME: join(root, "home-of-cuda"),
    LD_LIBRARY_PATH: `:${join(root, "ld")}:/nowhere`,
    VIRTUAL_ENV: join(root, "venv"),
    CONDA_PREFIX: join(root, "conda"),
  });
  expect(libraryCandidates("nvrtc", at).map(({ source }) => source)).toEqual([
    "OCTAVO_CUDA_HOME",
    "CUDA_HOME",
    "/usr/local/cuda",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "dynamic loader",
    "dynamic loader",
  ]);
});

test("libraries newer than the driver, and CUDA 11, are left out", () => {
  place("ld/libnvrtc.so.13", "ld/libnvrtc.so.12", "ld/libnvrtc.so.11.2");
  const at = host({ LD_LIBRARY_PATH: join(root, "ld") });
  expect(found("nvrtc", at)).toEqual(["ld/libnvrtc.so.13", "ld/libnvrtc.so.12"]);
  expect(found("nvrtc", at, 12)).toEqual(["ld/libnvrtc.so.12"]);
  expect(libraryCandidates("nvrtc", at, 12).at(-1)?.path).toBe("libnvrtc.so.12");
});

test("the driver comes from the loader before folders, and never from a toolkit's stubs", () => {
  place("usr/local/cuda/lib64/libcuda.so.1", "usr/lib/x86_64-linux-gnu/libcuda.so.1");
  expect(libraryCandidates("cuda", host()).map(({ path }) => path)).toEqual([
    "libcuda.so.1",
    join(root, "usr/lib/x86_64-linux-gnu/libcuda.so.1"),
  ]);
});

test("of several builtins, the NVRTC's own version is taken", () => {
  place("ld/libnvrtc.so.12.4.127", "ld/libnvrtc-builtins.so.12.4", "ld/libnvrtc-builtins.so.12.9");
  const [nvrtc] = libraryCandidates("nvrtc", host({ LD_LIBRARY_PATH: join(root, "ld") }));
  expect(builtinsOf(nvrtc!)).toBe(join(root, "ld/libnvrtc-builtins.so.12.4"));
});

test("the remedy fits the driver", () => {
  expect(installHint("nvrtc", 13)).toContain("pip install nvidia-cuda-nvrtc,");
  expect(installHint("nvrtc", 12)).toContain("pip install nvidia-cuda-nvrtc-cu12,");
  expect(installHint("cublasLt", 12)).toContain("CUDA 12 toolkit");
  expect(installHint("nccl", 13)).toContain("nvidia-nccl-cu13");
});
