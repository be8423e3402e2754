import { existsSync, readdirSync, realpathSync } from "node:fs";
import { basename, delimiter, dirname, join } from "node:path";
import { homeFolder } from "../base/home-folder.ts";

export type LibraryName = "cuda" | "nvrtc" | "cublasLt" | "nccl";

/** The surroundings that the search for libraries reads; tests make one up. */
export interface SearchHost {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Prefix of absolute system folders; "/" on a real machine. */
  readonly root: string;
  readonly cwd: string;
  readonly home: string;
}

/** A place a library may be loaded from. */
export interface LibraryCandidate {
  readonly name: LibraryName;
  /** Full path; or a bare soname, which the dynamic loader looks up. */
  readonly path: string;
  /** The reason to look there, e.g. `CUDA_HOME`. */
  readonly source: string;
  /** As far as file names tell, e.g. `12.9.86` or `13`. */
  readonly version: string;
  readonly major: number;
}

/** Majors of the soname, which for NVRTC and cuBLASLt are those of CUDA. */
const LIBRARIES: Record<LibraryName, { readonly stem: string; readonly majors: readonly number[] }> = {
  cuda: { stem: "libcuda.so", majors: [1] },
  nvrtc: { stem: "libnvrtc.so", majors: [13, 12] },
  cublasLt: { stem: "libcublasLt.so", majors: [13, 12] },
  nccl: { stem: "libnccl.so", majors: [2] },
};

export function thisHost(): SearchHost {
  return { env: process.env, root: "/", cwd: process.cwd(), home: homeFolder() };
}

/**
 * The places that `name` may be loaded from, best first: existing files, then what the dynamic loader finds by itself. The
 * driver belongs to the system, so for it the loader comes first and CUDA toolkits (which carry stubs) are ignored.
 *
 * @param maxMajor The newest CUDA that the driver runs; newer libraries are left out.
 */
export function libraryCandidates(
  name: LibraryName,
  host: SearchHost,
  maxMajor = Number.POSITIVE_INFINITY,
): LibraryCandidate[] {
  const { stem, majors } = LIBRARIES[name];
  const limit = name === "nvrtc" || name === "cublasLt" ? maxMajor : Number.POSITIVE_INFINITY;
  const wanted = majors.filter((major) => major <= limit);
  const folders = name === "cuda" ? driverFolders(host) : searchFolders(host);
  const files = folders.flatMap(({ path: folder, source }) =>
    versionsIn(folder, stem)
      .filter(({ major }) => wanted.includes(major))
      .map(({ file, version, major }) => ({ name, path: join(folder, file), source, version, major })),
  );
  const sonames = wanted.map((major) => ({
    name,
    path: `${stem}.${major}`,
    source: "dynamic loader",
    version: String(major),
    major,
  }));
  return name === "cuda" ? [...sonames, ...files] : [...files, ...sonames];
}

/**
 * The libnvrtc-builtins that belongs to an NVRTC: in the same folder, of the same version. NVRTC looks it up by
 * soname, which fails outside the loader's own folders unless it is loaded already.
 */
export function builtinsOf(nvrtc: LibraryCandidate): string | undefined {
  if (!nvrtc.path.includes("/")) return undefined;
  const folder = dirname(nvrtc.path);
  const all = versionsIn(folder, "libnvrtc-builtins.so").filter(({ major }) => major === nvrtc.major);
  const match = all.find(({ file }) => nvrtc.version.startsWith(file.slice("libnvrtc-builtins.so.".length)));
  const chosen = match ?? all[0];
  return chosen && join(folder, chosen.file);
}

/** The way to get a library that is missing, for a driver that runs CUDA `driverMajor`. */
export function installHint(name: LibraryName, driverMajor: number): string {
  if (name === "cuda") {
    return "install the NVIDIA driver (https://www.nvidia.com/drivers); in a container, pass the GPU through (docker run --gpus all)";
  }
  const suffix = driverMajor >= 13 ? "" : "-cu12";
  const wheel = {
    nvrtc: `nvidia-cuda-nvrtc${suffix}`,
    cublasLt: `nvidia-cublas${suffix}`,
    nccl: driverMajor >= 13 ? "nvidia-nccl-cu13" : "nvidia-nccl-cu12",
  }[name];
  if (name === "nccl") return `pip install ${wheel}, which only a model on several GPUs needs`;
  return `pip install ${wheel}, or point OCTAVO_CUDA_HOME at a CUDA ${Math.min(driverMajor, 13)} toolkit`;
}

interface SearchFolder {
  readonly path: string;
  readonly source: string;
}

/** Existing folders to search, each once, in order of preference. */
function searchFolders(host: SearchHost): SearchFolder[] {
  const { env } = host;
  const folders: SearchFolder[] = [];
  const add = (source: string, ...paths: string[]) => {
    for (const path of paths) folders.push({ path, source });
  };
  for (const variable of ["OCTAVO_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"]) {
    const home = env[variable];
    if (home) add(variable, ...toolkitFolders(home), home, ...wheelFolders(home));
  }
  add("/usr/local/cuda", ...toolkitFolders(join(host.root, "usr/local/cuda")));
  add("LD_LIBRARY_PATH", ...pathList(env["LD_LIBRARY_PATH"]));
  for (const { prefix, source } of pythonPrefixes(host)) {
    add(source, ...sitePackages(prefix).flatMap(wheelFolders));
  }
  if (env["CONDA_PREFIX"]) {
    add("CONDA_PREFIX", ...toolkitFolders(env["CONDA_PREFIX"]));
    add("CONDA_PREFIX", ...sitePackages(env["CONDA_PREFIX"]).flatMap(wheelFolders));
  }
  return unique(folders);
}

function driverFolders(host: SearchHost): SearchFolder[] {
  const system = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
  ];
  return unique(system.map((path) => ({ path: join(host.root, path), source: `/${path}` })));
}

function toolkitFolders(home: string): string[] {
  return [join(home, "lib64"), join(home, "targets/x86_64-linux/lib"), join(home, "lib")];
}

/** pip's layouts: `nvidia/cu13/lib` for CUDA 13, and a folder a library (`nvidia/cuda_nvrtc/lib`) before. */
function wheelFolders(packages: string): string[] {
  const nvidia = join(packages, "nvidia");
  return list(nvidia).map((entry) => join(nvidia, entry, "lib"));
}

/** Installation prefixes of the Python environments in reach, without running Python. */
function pythonPrefixes(host: SearchHost): { prefix: string; source: string }[] {
  const { env, root, cwd, home } = host;
  const prefixes: { prefix: string; source: string }[] = [];
  if (env["VIRTUAL_ENV"]) prefixes.push({ prefix: env["VIRTUAL_ENV"], source: "VIRTUAL_ENV" });
  for (const folder of [".venv", "venv"]) prefixes.push({ prefix: join(cwd, folder), source: folder });
  for (const folder of pathList(env["PATH"])) {
    if (existsSync(join(folder, "python3"))) {
      prefixes.push({ prefix: dirname(folder), source: `python3 in ${folder}` });
    }
  }
  prefixes.push({ prefix: join(home, ".local"), source: "~/.local" });
  const opt = join(root, "opt");
  for (const entry of list(opt)) {
    for (const folder of ["", ".venv", "venv"]) {
      prefixes.push({ prefix: join(opt, entry, folder), source: `/opt/${entry}` });
    }
  }
  for (const folder of ["usr/local", "usr"])
    prefixes.push({ prefix: join(root, folder), source: `/${folder}` });
  return prefixes;
}

function sitePackages(prefix: string): string[] {
  const lib = join(prefix, "lib");
  return list(lib)
    .filter((entry) => entry.startsWith("python3"))
    .flatMap((entry) => [join(lib, entry, "site-packages"), join(lib, entry, "dist-packages")]);
}

/** Files `stem.MAJOR[.MINOR…]` of a folder, newest major first, the shortest name (the soname) before others. */
function versionsIn(folder: string, stem: string): { file: string; version: string; major: number }[] {
  return list(folder)
    .filter((file) => file.startsWith(`${stem}.`) && /^\d+(\.\d+)*$/.test(file.slice(stem.length + 1)))
    .map((file) => {
      const version = fullVersion(folder, file, stem);
      return { file, version, major: Number.parseInt(version, 10) };
    })
    .sort((a, b) => b.major - a.major || a.file.length - b.file.length || (a.file < b.file ? 1 : -1));
}

/** The version in the name of the file behind the link, where that says more. */
function fullVersion(folder: string, file: string, stem: string): string {
  const own = file.slice(stem.length + 1);
  try {
    const real = basename(realpathSync(join(folder, file)));
    const behind = real.slice(stem.length + 1);
    return real.startsWith(`${stem}.${own}`) ? behind : own;
  } catch {
    return own;
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

function pathList(value: string | undefined): string[] {
  return (value ?? "").split(delimiter).filter((entry) => entry !== "");
}

function unique(folders: SearchFolder[]): SearchFolder[] {
  const seen = new Set<string>();
  return folders.filter(({ path }) => {
    if (!existsSync(path)) return false;
    const real = realpathSync(path);
    if (seen.has(real)) return false;
    seen.add(real);
    return true;
  });
}
