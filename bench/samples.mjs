// Samples of a quantity and what is said about them.

const rounded = (value) => Number(value.toPrecision(4));

export class Samples {
  #values = [];

  add(...values) {
    this.#values.push(...values);
  }

  last() {
    return this.#values.at(-1);
  }

  // {n, median, p95, p99, min, max, spread}
  summary() {
    const sorted = [...this.#values].sort((a, b) => a - b);
    const median = quantile(sorted, 0.5);
    return {
      n: sorted.length,
      median: rounded(median),
      p95: rounded(quantile(sorted, 0.95)),
      p99: rounded(quantile(sorted, 0.99)),
      min: rounded(sorted[0]),
      max: rounded(sorted.at(-1)),
      spread: rounded((quantile(sorted, 0.75) - quantile(sorted, 0.25)) / median),
    };
  }
}

// Of sorted values, between the two nearest.
export function quantile(sorted, share) {
  if (sorted.length === 0) throw new Error('no samples');
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}
