#!/usr/bin/env bun
import { version } from "../../package.json";
import { generateCommand } from "./generate.ts";
import { createCommand, runCommand } from "./program.ts";

const octavo = createCommand("octavo")
  .description("Paged LLM inference for Bun.")
  .version(version, "-V, --version", "print the version")
  .addCommand(generateCommand("generate"));

await runCommand(octavo, process.argv.slice(2));
