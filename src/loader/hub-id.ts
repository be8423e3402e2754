/** True for a Hugging Face id, `org/name`. No such text names anything outside of the folder that it is put into. */
export function isHubId(text: string): boolean {
  return /^(?:\w[\w.-]{0,95})\/(?:\w[\w.-]{0,95})$/.test(text) && !/--|\.\.|[.-](?:$|\/)/.test(text);
}
