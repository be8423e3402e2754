import { expect, setDefaultTimeout, test } from "bun:test";
import { ExitCode } from "../../src/base/errors.ts";
import { openCuda } from "../../src/cuda/open-cuda.ts";
import { expectRefusal, runScript } from "../cli/support.ts";
import { available } from "../requirements.ts";

setDefaultTimeout(300_000);

const { usage, noInput } = ExitCode;

test.each<[script: string, args: string, code: number, parts: readonly string[]]>([
  ["throughput", "--repeat 0", usage, ["--repeat", "below 1"]],
  ["startup", "--runs 0", usage, ["--runs", "below 1"]],
  ["served", "-m X -w /nope --repeat 0", usage, ["--repeat", "below 1"]],
  ["served", "-m X", usage, ["--workload"]],
  ["served", "-m X -w /nope", noInput, ["cannot read /nope"]],
  ["kernels", "--only decode --only zzz", usage, ['"zzz"']],
  ["kernels", "--list --only zzz", usage, ['"zzz"']],
  ["table", "--only zzz", usage, ['"zzz"']],
  ["collectives", "--ranks 3", usage, ["2, 4 or 8"]],
  ["make-model", "/nope", usage, ["out"]],
  ["make-model", "/nope X", noInput, ["/nope"]],
])("bench/%s.ts %s is refused in one line", async (script, args, code, parts) => {
  const result = await runScript(`bench/${script}.ts`, args.split(" "));
  expectRefusal(result, code, ...parts);
  expect(result.stderr).not.toContain("octavo: octavo:");
});

test("a list has the cases with the text, and the help what is required", async () => {
  const [listed, help] = await Promise.all([
    runScript("bench/kernels.ts", ["--list", "--only", "16 × 16384"]),
    runScript("bench/served.ts", ["--help"]),
  ]);
  const lines = listed.stdout.trimEnd().split("\n");
  expect(lines).toHaveLength(6);
  for (const line of lines) expect(line).toContain("16 × 16384");
  expect(help.stdout.match(/\(required\)/g)).toHaveLength(2);
});

test.skipIf(typeof available(openCuda) !== "string")(
  "sums over GPUs say what is missing for the first one",
  async () => {
    const result = await runScript("bench/collectives.ts", []);
    expectRefusal(result, ExitCode.device, String(available(openCuda)));
  },
);
