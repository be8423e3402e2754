#!/usr/bin/env bun
import { version } from "../../package.json";
import { benchCommand } from "./bench/bench.ts";
import { chatCommand } from "./chat.ts";
import { createCommand, runCommand } from "./command.ts";
import { doctorCommand } from "./doctor.ts";
import { generateCommand } from "./generate.ts";
import { pullCommand } from "./pull.ts";
import { serveCommand } from "./serve.ts";

const octavo = createCommand("octavo", [
  "octavo chat                             talk with the embedded model",
  "octavo serve Qwen/Qwen3-0.6B            serve a model at http://127.0.0.1:8000",
  "octavo <command> --help                 flags and examples of a command",
])
  .description("Paged LLM inference for Bun.")
  .version(version, "-V, --version", "print the version")
  .addCommand(serveCommand("serve"))
  .addCommand(chatCommand("chat"))
  .addCommand(generateCommand("generate"))
  .addCommand(pullCommand("pull"))
  .addCommand(doctorCommand("doctor"))
  .addCommand(benchCommand("bench"));

await runCommand(octavo, process.argv.slice(2));
