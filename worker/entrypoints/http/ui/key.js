/** The dialog for the API key: opened by its button, or when the server asks for one. */
import { getKey, onKeyNeeded, setKey } from "./api.js";
import { announce, byId } from "./dom.js";

/** Starts the button, and answers the server's calls for a key. */
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
    const key = await ask("What this server was started with as API_KEY, if anything. Empty forgets it.");
    if (key === null) return;
    setKey(key);
    announce(key ? "The key will be used" : "The key is forgotten");
  });
  onKeyNeeded((wrong) => ask(wrong ? "The server refused this key." : "This server asks for a key."));
}
