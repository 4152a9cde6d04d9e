// Measures how long an answer takes; a person who is away does not count.

export const AWAY = 300_000; // ms without a key or a click
const TICK = 1000;

export class Clock {
  constructor(onAway) {
    this.onAway = onAway;
    this.away = false;
    this.restart();
    setInterval(() => this.tick(), TICK);
    document.addEventListener("visibilitychange", () => this.tick());
  }

  restart() {
    this.spent = 0;
    this.last = this.touched = Date.now();
  }

  // A key or a click; true if the person was away until now.
  touch() {
    this.tick();
    const wasAway = this.away;
    this.away = false;
    this.touched = this.last = Date.now();
    return wasAway;
  }

  seconds() {
    this.tick();
    return this.spent / 1000;
  }

  tick() {
    const now = Date.now();
    const passed = now - this.last;
    this.last = now;
    // A laptop that slept makes one long step.
    if (!this.away && !document.hidden && passed < 5 * TICK) this.spent += Math.max(0, passed);
    if (!this.away && now - this.touched > AWAY) {
      this.away = true;
      this.onAway();
    }
  }
}
