// @ts-check
// Requests to the kernel, each of which is answered: by the kernel, or by what to do if it does not reply.

const REPLY_TIMEOUT = 4000; // milliseconds for the kernel to reply
const FETCH_TIMEOUT = 15_000; // for an image

/**
 * What to display for a request that has no reply yet.
 * @param {string | undefined} status of the kernel, where the host reports it
 */
export function waitingText(status) {
  if (status === "busy")
    return "waiting: the kernel is busy with another cell. It replies when that cell has finished.";
  if (status === "dead" || status === "terminating")
    return "the kernel has stopped. Restart it and run this cell again.";
  if (/restarting|starting/.test(status ?? ""))
    return "the kernel is restarting. Run this cell again when it is ready.";
  if (status === "disconnected") return "there is no connection to the kernel. Connect to it, or run this cell again.";
  return "no reply from the kernel: it is busy, or it was restarted. If it was restarted, run this cell again.";
}

/** What to display when the connection to the kernel has ended. */
export function goneText(status) {
  const happened = /restarting|starting/.test(status ?? "") ? "the kernel was restarted" : "the kernel has stopped";
  return `${happened}. The pictures remain; run this cell again to go on.`;
}

/** The status of the kernel, where the host reports it. */
export function kernelStatus(model) {
  const kernel = model.widget_manager?.kernel;
  return kernel?.connectionStatus === "disconnected" ? "disconnected" : kernel?.status;
}

/**
 * Send requests and display their replies.
 * @param {(text: string) => void} show displays a text
 * @param {(state: string) => void} [changed] called with "waiting" or "" when the number of open requests changes
 */
export function makeRequests(model, show, changed = () => {}) {
  /** @type {Map<number, ReturnType<typeof setTimeout>>} */
  const open = new Map();
  let count = 0;
  function settle(number) {
    clearTimeout(open.get(number));
    open.delete(number);
    if (!open.size) changed("");
  }
  /** @type {Map<number, (buffers: any[], text: string) => void>} */
  const fetches = new Map();
  const receive = ({ kind, request, text }, buffers) => {
    if (kind !== "reply" || !open.has(request)) return;
    settle(request);
    if (fetches.has(request)) fetches.get(request)(buffers, text);
    else show(text);
  };
  model.on("msg:custom", receive);
  return {
    send(message, { text = "waiting for the kernel …", buffers = [] } = {}) {
      count += 1;
      const number = count;
      show(text);
      open.set(
        number,
        setTimeout(() => show(waitingText(kernelStatus(model))), REPLY_TIMEOUT),
      );
      changed("waiting");
      model.send({ ...message, request: number }, undefined, buffers);
    },
    /** Bytes from the kernel. Rejected with what to do if it does not reply. */
    query(message, timeout = FETCH_TIMEOUT) {
      count += 1;
      const number = count;
      return new Promise((resolve, reject) => {
        const fail = (text) => {
          settle(number);
          fetches.delete(number);
          reject(new Error(text));
        };
        open.set(
          number,
          setTimeout(() => fail(waitingText(kernelStatus(model))), timeout),
        );
        fetches.set(number, ([buffer], text) => {
          if (buffer === undefined) return fail(text);
          fetches.delete(number);
          resolve(new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength));
        });
        model.send({ ...message, request: number });
      });
    },
    close() {
      model.off("msg:custom", receive);
      for (const number of [...open.keys()]) settle(number);
    },
  };
}
