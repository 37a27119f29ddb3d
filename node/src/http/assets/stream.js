// Follows /api/events, and goes on trying when the connection is lost. Not by EventSource: that can show no token.

// The peer sends something at least every ten seconds.
const SILENCE_MS = 25_000;
const AGAIN_MAX_S = 15;

export class Stream {
  #hands;
  #stop = new AbortController();

  // `hands`: told(name, value), open(), lost(seconds), refused().
  constructor(address, token, hands) {
    this.#hands = hands;
    this.#run(address, token);
  }

  close() {
    this.#stop.abort();
  }

  async #run(address, token) {
    let pause = 1;
    while (!this.#stop.signal.aborted) {
      const lasted = await this.#once(address, token).catch(() => false);
      if (this.#stop.signal.aborted) return;
      if (lasted === null) return this.#hands.refused();
      pause = lasted ? 1 : Math.min(pause * 2, AGAIN_MAX_S);
      for (let left = pause; left > 0 && !this.#stop.signal.aborted; left -= 1) {
        this.#hands.lost(left);
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
  }

  // Whether something came; null where the token is not the right one.
  async #once(address, token) {
    const cut = new AbortController();
    const stop = () => cut.abort();
    this.#stop.signal.addEventListener("abort", stop);
    let silence = setTimeout(stop, SILENCE_MS);
    let came = false;
    try {
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await fetch(address, { headers, cache: "no-store", signal: cut.signal });
      if (response.status === 401) return null;
      if (!response.ok) return false;
      this.#hands.open();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return came;
        clearTimeout(silence);
        silence = setTimeout(stop, SILENCE_MS);
        came = true;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        parts.forEach((part) => this.#take(part));
      }
    } catch {
      return came;
    } finally {
      clearTimeout(silence);
      this.#stop.signal.removeEventListener("abort", stop);
    }
  }

  #take(part) {
    let name = "message";
    const data = [];
    for (const line of part.split("\n")) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    }
    if (data.length > 0) this.#hands.told(name, JSON.parse(data.join("\n")));
  }
}
