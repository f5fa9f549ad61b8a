// Numbers and moments as people read them.

/** Milliseconds. */
export function ms(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value === 0) return '0 ms'
  if (value < 0.001) return `${Math.round(value * 1e6)} ns`
  if (value < 1) return `${Math.round(value * 1000)} µs`
  if (value < 10) return `${value.toFixed(2)} ms`
  if (value < 100) return `${value.toFixed(1)} ms`
  if (value < 1000) return `${Math.round(value)} ms`
  if (value < 60_000) return `${(value / 1000).toFixed(2)} s`
  return `${Math.floor(value / 60_000)} min ${Math.round((value % 60_000) / 1000)} s`
}

/** Milliseconds of what was measured: without a duration there is nothing to show, and no request takes none. */
export const latency = (value: number) => (value > 0 ? ms(value) : '–')

/** Nanoseconds. */
export const ns = (value: number) => ms(value / 1e6)

const whole = new Intl.NumberFormat('en')
export const count = (value: number) => whole.format(value)

export function percent(share: number): string {
  const value = share * 100
  if (value === 0 || value === 100) return `${value}%`
  if (value < 0.01) return '<0.01%'
  if (value > 99.99) return '>99.99%'
  return `${value < 1 || value > 99 ? value.toFixed(2) : value.toFixed(1)}%`
}

const two = (value: number) => String(value).padStart(2, '0')

/** A moment in this browser's zone: the day only when it is another one than today. */
export function moment(at: Date): string {
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, '0')}`
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
  return at.toDateString() === new Date().toDateString() ? time : `${day} ${time}`
}

export const ofNanos = (nanos: number) => new Date(nanos / 1e6)

export function ago(at: string): string {
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000)
  if (!Number.isFinite(seconds)) return '–'
  if (seconds < 60) return `${Math.round(seconds)} s ago`
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`
  return `${Math.round(seconds / 86_400)} d ago`
}

export function plural(number: number, word: string, more = word + 's'): string {
  return `${count(number)} ${number === 1 ? word : more}`
}

/** Text of an attribute. */
export function shown(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value) ?? ''
}
