// Differences of two texts, word by word.

const WORD = /(?:[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]|^(?=\s))\s*/gu;

// Texts that have less than this in common are shown as wholly different: to look further takes long and says little.
const MOST_CHANGES = 2000;

// Which words of each text the other has not: [pieces of left, pieces of right], a piece being [text, changed].
function differences(left, right) {
  const [a, b] = [left.match(WORD) ?? [], right.match(WORD) ?? []];
  const [same, sameInB] = common(a, b);
  return [pieces(a, same), pieces(b, sameInB)];
}

function common(a, b) {
  const names = new Map();
  const number = (word) => {
    const bare = word.trimEnd();
    if (!names.has(bare)) names.set(bare, names.size);
    return names.get(bare);
  };
  const [x, y] = [Int32Array.from(a, number), Int32Array.from(b, number)];
  const [inA, inB] = [new Uint8Array(x.length), new Uint8Array(y.length)];
  let start = 0;
  let [endA, endB] = [x.length, y.length];
  while (start < endA && start < endB && x[start] === y[start]) start++;
  while (endA > start && endB > start && x[endA - 1] === y[endB - 1]) [endA, endB] = [endA - 1, endB - 1];
  const matches = shortest(x.subarray(start, endA), y.subarray(start, endB));
  inA.fill(1, 0, start).fill(1, endA);
  inB.fill(1, 0, start).fill(1, endB);
  for (const [i, j] of withoutCrumbs(matches, endA - start, endB - start)) inA[start + i] = inB[start + j] = 1;
  return [inA, inB];
}

// The places that a shortest way from x to y keeps (Myers 1986): pairs of indices, ascending.
function shortest(x, y) {
  const most = Math.min(x.length + y.length, MOST_CHANGES);
  const trace = [];
  let reach = new Int32Array(2 * most + 3);
  const middle = most + 1;
  for (let changes = 0; changes <= most; changes++) {
    trace.push(reach.slice(middle - changes - 1, middle + changes + 2));
    for (let k = -changes; k <= changes; k += 2) {
      const down = k === -changes || (k !== changes && reach[middle + k - 1] < reach[middle + k + 1]);
      let i = down ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
      while (i < x.length && i - k < y.length && x[i] === y[i - k]) i++;
      reach[middle + k] = i;
      if (i >= x.length && i - k >= y.length) return walkBack(trace, x.length, y.length);
    }
  }
  return [];
}

function walkBack(trace, i, j) {
  const matches = [];
  for (let changes = trace.length - 1; changes >= 0; changes--) {
    const before = trace[changes];
    const at = (k) => before[k + changes + 1];
    const k = i - j;
    const down = k === -changes || (k !== changes && at(k - 1) < at(k + 1));
    const from = down ? k + 1 : k - 1;
    const [fromI, fromJ] = changes === 0 ? [0, 0] : [at(from), at(from) - from];
    while (i > fromI && j > fromJ) matches.push([--i, --j]);
    [i, j] = [fromI, fromJ];
  }
  return matches.reverse();
}

// A single word in common amid many changes is chance, and makes both texts hard to read.
function withoutCrumbs(matches, lengthA, lengthB) {
  const runs = [];
  for (const match of matches) {
    const run = runs.at(-1);
    const last = run?.at(-1);
    if (last && match[0] === last[0] + 1 && match[1] === last[1] + 1) run.push(match);
    else runs.push([match]);
  }
  const gap = (from, to) => Math.min(to[0] - from[0], to[1] - from[1]) - 1;
  return runs
    .filter((run, index) => {
      const before = runs[index - 1]?.at(-1) ?? [-1, -1];
      const after = runs[index + 1]?.[0] ?? [lengthA, lengthB];
      return run.length > 1 || gap(before, run[0]) < 2 || gap(run[0], after) < 2;
    })
    .flat();
}

function pieces(words, same) {
  const found = [];
  words.forEach((word, index) => {
    const changed = !same[index];
    if (found.length && found.at(-1)[1] === changed) found.at(-1)[0] += word;
    else found.push([word, changed]);
  });
  return found;
}
