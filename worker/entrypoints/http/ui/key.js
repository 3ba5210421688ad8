/** The dialog for the API key. It opens by its button, and when the server requires a key. */
import { getKey, onKeyNeeded, setKey } from "./api.js";
import { announce, byId } from "./dom.js";

/** Connect the button and the dialog. */
export function startKey() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const input = /** @type {HTMLInputElement} */ (byId("key-value"));
  /** @type {Promise<string|null>|null} */
  let asking = null;

  const ask = (/** @type {string} */ why) => {
    asking ??= new Promise((resolve) => {
      byId("key-why").textContent = why;
      input.value = getKey();
      dialog.returnValue = "";
      dialog.showModal();
      input.select();
      dialog.addEventListener("close", () => {
        asking = null;
        resolve(dialog.returnValue === "use" ? input.value.trim() : null);
      }, { once: true });
    });
    return asking;
  };

  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key").addEventListener("click", async () => {
    const key = await ask("The value of this server's API_KEY setting. Leave the field empty to forget the key.");
    if (key === null) return;
    setKey(key);
    announce(key ? "The key is stored" : "The key is forgotten");
  });
  onKeyNeeded((wrong) => ask(wrong ? "The server rejected this key." : "This server requires a key."));
}
