import { homedir } from "node:os";

/** The user's home; the root for one who has none, as in containers whose users have no name. */
export function homeFolder(): string {
  try {
    return homedir();
  } catch {
    return "/";
  }
}
