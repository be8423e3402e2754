// Where "octavo" leads in other runtimes than Bun: its code is TypeScript, and calls the GPU through bun:ffi.
throw new Error(
  "octavo runs on Bun, not on Node.js or in a browser: install Bun (https://bun.sh) and start the program with `bun`",
);
