#!/usr/bin/env bun
import type { Command } from "commander";
import { version } from "../../package.json";
import { benchCommand } from "./bench/bench.ts";
import { chatCommand } from "./chat.ts";
import { createCommand, runCommand } from "./command.ts";
import { completeCommand } from "./complete.ts";
import { completionCommand } from "./completion/completion.ts";
import { doctorCommand } from "./doctor.ts";
import { generateCommand } from "./generate.ts";
import { inspectCommand } from "./inspect.ts";
import { listCommand } from "./list.ts";
import { pullCommand } from "./pull.ts";
import { removeCommand } from "./remove.ts";
import { runModelCommand } from "./run.ts";
import { serveCommand } from "./serve.ts";

// What a command computes with is loaded by its action: other commands, and its help, start without.
const octavo: Command = createCommand("octavo", [
  "octavo run                              talk with the embedded model",
  "octavo run Qwen/Qwen3-0.6B              download a model and talk with it",
  "octavo serve Qwen/Qwen3-0.6B            serve a model at http://127.0.0.1:8000",
  "octavo <command> --help                 flags and examples of a command",
])
  .description("Paged LLM inference for Bun.")
  .version(version, "-V, --version", "print the version")
  .addCommand(runModelCommand("run"))
  .addCommand(serveCommand("serve"))
  .addCommand(chatCommand("chat"))
  .addCommand(completeCommand("complete"))
  .addCommand(generateCommand("generate"))
  .addCommand(pullCommand("pull"))
  .addCommand(listCommand("list"))
  .addCommand(removeCommand("rm"))
  .addCommand(inspectCommand("inspect"))
  .addCommand(doctorCommand("doctor"))
  .addCommand(benchCommand("bench"))
  .addCommand(completionCommand("completion", () => octavo));

await runCommand(octavo, process.argv.slice(2));
