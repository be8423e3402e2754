import { join } from "node:path";
import { homeFolder } from "./home-folder.ts";

/**
 * The folder of what Octavo makes and can make again, `name` of it: in `$OCTAVO_CACHE_DIR`, `$XDG_CACHE_HOME/octavo` or
 * `~/.cache/octavo`.
 */
export function cacheFolder(
  name: "kernels" | "models",
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  const base =
    env["OCTAVO_CACHE_DIR"] || join(env["XDG_CACHE_HOME"] || join(homeFolder(), ".cache"), "octavo");
  return join(base, name);
}
