// Answers that the server has not confirmed yet. They outlive the tab, in the browser's own storage.

export class Refused extends Error {} // the server said why
export class Locked extends Error {} // another token is needed
export class Down extends Error {} // nobody answers

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

export async function call(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response, content;
  try {
    response = await fetch(path, body ? post : {});
    content = response.status === 403 ? {} : await response.json();
  } catch (error) {
    throw new Down(String(error));
  }
  if (response.status === 403) throw new Locked();
  if (response.status === 400) throw new Refused(content.error);
  if (!response.ok) throw new Down(content.error || `status ${response.status}`);
  return content;
}

export class Outbox {
  constructor(project) {
    this.key = `dalle_ppo.labels.${project}`;
    this.sending = null;
    this.memory = null;
  }

  rows() {
    if (this.memory) return this.memory;
    try {
      return JSON.parse(localStorage.getItem(this.key)) || [];
    } catch {
      return [];
    }
  }

  keep(rows) {
    try {
      localStorage.setItem(this.key, JSON.stringify(rows));
      this.memory = null;
    } catch { // a browser may forbid to keep anything
      this.memory = rows;
    }
  }

  add(row) {
    this.keep([...this.rows(), { ...row, at: Date.now() }]);
  }

  remove(id) {
    this.keep(this.rows().filter((row) => row.id !== id));
  }

  // Takes back the newest answer of a rater that has not been sent; undefined if there is none.
  pop(rater) {
    const row = this.sending ? undefined : this.rows().filter((each) => each.rater === rater).pop();
    if (row) this.remove(row.id);
    return row;
  }

  // Sends row after row; calls `onState` with what the server says after each.
  send(onState) {
    this.sending ||= this.sendAll(onState).finally(() => { this.sending = null; });
    return this.sending;
  }

  async sendAll(onState) {
    for (let row; (row = this.rows()[0]); ) {
      const waited = (Date.now() - row.at) / 1000;
      try {
        const state = await call("api/answer", { ...row, waited });
        this.remove(row.id);
        onState(state);
      } catch (error) {
        if (error instanceof Refused) this.setAside(row);
        throw error;
      }
    }
  }

  // A row that the server refuses would stop all others; it is kept where a person can find it.
  setAside(row) {
    const key = `${this.key}.refused`;
    localStorage.setItem(key, JSON.stringify([...JSON.parse(localStorage.getItem(key) || "[]"), row]));
    this.remove(row.id);
  }
}
