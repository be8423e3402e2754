import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { temporaryFolder } from "../support.ts";
import { expectRefusal, octavo } from "./support.ts";

setDefaultTimeout(300_000);

const FOUND: Readonly<Record<string, string>> = {
  "octavo r": "rm run",
  "octavo inspect ": "estimate gpu model",
  "octavo serve --ho": "--host",
  "octavo serve --device cpu": "cpu cpu-reference",
  "octavo serve --port 1 --device cu": "cuda",
  "octavo run tiny": "tiny-stories",
  "octavo run fi": "file.txt",
  "octavo rm org": "org/model",
  "octavo rm fi": "",
  "octavo generate --file fi": "file.txt",
  "octavo serve --port ": "",
  "octavo completion f": "fish",
};

let folder: ReturnType<typeof temporaryFolder>;
beforeAll(async () => {
  folder = temporaryFolder();
  mkdirSync(folder.file("bin"));
  mkdirSync(folder.file("work"));
  writeFileSync(folder.file("work/file.txt"), "");
  // Models come from `octavo list`, of which the shells only see what it writes.
  writeFileSync(folder.file("bin/octavo"), "#!/bin/sh\nprintf 'tiny-stories\\norg/model\\n'\n");
  chmodSync(folder.file("bin/octavo"), 0o755);
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await octavo(["completion", shell]);
    expect(code).toBe(0);
    writeFileSync(folder.file(shell), stdout);
  }
});
afterAll(() => folder[Symbol.dispose]());

const env = () => ({
  ...process.env,
  PATH: `${folder.file("bin")}:${process.env["PATH"]}`,
  TERM: "dumb",
  HOME: folder.path,
});

/** What a shell writes for each line of input. */
function candidates(shell: readonly string[], script: (line: string) => string): Record<string, string> {
  const marked = Object.keys(FOUND).map((line) => `echo '## ${line}'\n${script(line)}\n`);
  const code = `source ${folder.file(shell[0]!)}\n${marked.join("")}`;
  const { stdout, stderr } = Bun.spawnSync([...shell, "-c", code], { cwd: folder.file("work"), env: env() });
  expect(stderr.toString()).toBe("");
  const parts = stdout
    .toString()
    .split("## ")
    .slice(1)
    .map((part) => part.split("\n"));
  return Object.fromEntries(
    parts.map(([line, ...words]) => [
      line!,
      words
        .map((word) => word.split("\t")[0]!)
        .filter(Boolean)
        .sort()
        .join(" "),
    ]),
  );
}

describe("a shell completes commands, flags, their values and models", () => {
  test("bash", () => {
    const found = candidates(["bash", "--norc"], (line) => {
      const words = line.split(" ").map((word) => `"${word}"`);
      return `COMP_WORDS=(${words.join(" ")}); COMP_CWORD=${words.length - 1}; _octavo; printf '%s\\n' "\${COMPREPLY[@]}"`;
    });
    expect(found).toEqual(FOUND);
  });

  test.skipIf(Bun.which("fish") === null)("fish, where there is one", () => {
    expect(candidates(["fish", "--no-config"], (line) => `complete -C '${line}'`)).toEqual(FOUND);
  });

  test.skipIf(Bun.which("zsh") === null)("zsh, where there is one", async () => {
    const child = Bun.spawn(["zsh", "-f", "-i"], {
      cwd: folder.file("work"),
      env: { ...env(), TERM: "xterm" },
      terminal: { cols: 100, rows: 40 },
    });
    child.terminal!.write(`autoload -U compinit; compinit -u; source ${folder.file("zsh")}\n`);
    // Each line is completed, and then written to a file instead of being run.
    for (const line of Object.keys(FOUND).filter(
      (line) => FOUND[line] !== "" && !FOUND[line]!.includes(" "),
    )) {
      child.terminal!.write(`${line}\t\x01print -r -- '\x05' >>found\n`);
    }
    child.terminal!.write("exit\n");
    await child.exited;
    const found = (await Bun.file(folder.file("work/found")).text())
      .trim()
      .split("\n")
      .map((line) => line.trim());
    const expected = Object.entries(FOUND).filter(([, words]) => words !== "" && !words.includes(" "));
    expect(found).toEqual(expected.map(([line, word]) => line.replace(/\S*$/, word)));
  });
});

test("another shell is refused", async () => {
  expectRefusal(await octavo(["completion", "tcsh"]), 64, "tcsh");
  expectRefusal(await octavo(["completion"]), 64, "shell");
});
