/**
 * Sends a file's bytes as a request's body some times, and prints the statuses and the error of the last reply as JSON. Run as
 * a process of its own, so that the server's thread is measured alone: `bun tests/server/body-client.ts URL FILE TIMES`
 */
const [url, file, times] = process.argv.slice(2);
const body = await Bun.file(file!).bytes();
const statuses: number[] = [];
let error: unknown;
for (let i = 0; i < Number(times); i++) {
  const reply = await fetch(url!, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  statuses.push(reply.status);
  error = ((await reply.json()) as { error?: unknown }).error;
}
console.log(JSON.stringify({ statuses, error }));

export {};
