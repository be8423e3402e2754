/** Seconds that a server gets to load its model. */
const START_SECONDS = 120;

/** Waits until the server at that address serves. @throws Error when it takes too long. */
export async function ready(url: string): Promise<void> {
  for (let waited = 0; waited < START_SECONDS; waited += 0.2) {
    const response = await fetch(`${url}/health`).catch(() => undefined);
    if (response?.ok) return;
    await Bun.sleep(200);
  }
  throw new Error(`the server was not ready within ${START_SECONDS} s`);
}
