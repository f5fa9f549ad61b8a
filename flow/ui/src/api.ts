// What the server answers, and how it is asked. The shapes are those of `flow/src/server/openapi.json`; times are
// nanoseconds, latencies milliseconds. Must never hide why an answer did not come.

export interface Metrics { requestCount: number; errorCount: number; avgLatency: number; p50Latency: number; p95Latency: number; p99Latency: number; estimated: boolean }
export interface Service { name: string; namespace: string; pod: string; version?: string; deployment?: string }
export type Health = 'healthy' | 'degraded' | 'down'
export interface Node { id: string; kind: string; service: Service; metrics: Metrics; status: Health; requestRate?: number; self?: { spanCount: number; requestCount: number; errorCount: number; avgLatency: number }; place?: [number, number] }
export interface Lag { subscription?: string; messages: number; avg: number; p50?: number; p95?: number; p99?: number }
export interface Edge { from: string; to: string; callCount: number; errorRate: number; avgLatency: number; p95Latency?: number; retryCount: number; kind: string; provenance: 'proven' | 'inferred' | 'async' | 'link'; estimated: boolean; unanswered?: number; topic?: string; lag?: Lag[]; self?: { callCount: number; errorCount: number; avgLatency: number; retryCount: number }; passes?: [number, number][] }
export interface Graph { nodes: Node[]; edges: Edge[] }
export interface Operation { name: string; environment: string; count: number; errorRate: number; avgLatency: number; p50Latency: number; p95Latency: number; p99Latency: number; estimated: boolean; lastSeen: string }
export interface Stats { totalRequests: number; successCount: number; errorCount: number; timeoutCount: number; retryCount: number; avgLatency: number; p50Latency: number; p95Latency: number; p99Latency: number; estimated: boolean; services: { name: string; namespace: string; requestCount: number; errorCount: number; avgLatency: number }[]; routes: { service: string; namespace: string; route: string; requestCount: number; errorCount: number; avgLatency: number; p95Latency: number }[]; errors: { errorType: string; count: number }[] }
export interface TraceInList { traceId: string; operationName: string; uiEvent?: string; environment: string; rootService: string; rootName: string; startTime: number; duration: number; status: Outcome; spanCount: number; errorCount: number; serviceCount: number; services: string[] }
export type Outcome = 'success' | 'error' | 'timeout'
export interface Verdict { verdict: string; hop: { from: string; to: string; route: string; spanId?: string }; reason: string; fix: string; count?: number; traceId?: string }
export interface Finding { kind: string; service: string; spanId: string; spanIds: string[]; count: number; wastedMs: number; text: string }
export interface Span { spanId: string; parentSpanId?: string; traceId: string; name: string; kind: string; service: Service; startTime: number; endTime: number; duration: number; status: 'UNSET' | 'OK' | 'ERROR'; statusMessage?: string; attributes: Record<string, unknown>; events: { name: string; timestamp: number; attributes: Record<string, unknown> }[]; links?: { traceId: string; spanId: string; attributes: Record<string, unknown> }[]; source: string; skew?: number; note?: 'orphan' | 'cycle' }
export interface Trace { traceId: string; operationName: string; uiEvent?: string; startTime: number; endTime: number; duration: number; status: Outcome; spans: Span[]; metadata: { environment: string; user?: string; sessionId?: string }; criticalPath: { spanId: string; startTime: number; duration: number }[]; findings: Finding[]; doctor: Verdict[]; duplicateSpans: number }
export interface ServiceMetrics { requestRate: number; errorRate: number; avgLatency: number; p50Latency: number; p95Latency: number; p99Latency: number; requestCount: number; errorCount: number; estimated: boolean }
export interface ServiceInList { name: string; namespace: string; environment: string; podCount: number; version: string; status: Health; metrics: ServiceMetrics; lastSeen: string }
export interface RouteScore { route: string; forwarded: number; dropped: number; score: number }
export interface ServiceDetails extends Omit<ServiceInList, 'podCount'> { pods: { name: string; node: string; status: string; version: string; lastSeen: string }[]; dependencies: { upstream: string[]; downstream: string[] }; doctor: Verdict[]; propagation: RouteScore[] }
export interface Doctor { services: { name: string; namespace: string; environment: string; score: number | null; routes: RouteScore[]; verdicts: Verdict[] }[]; tracesExamined: number }

/** Why there is no answer, in words for people. */
export class Failed extends Error {
  constructor(readonly status: number, message: string) { super(message) }
}

/** Asks `path` under `/api/v1/`. */
export async function ask<T>(path: string, signal?: AbortSignal): Promise<T> {
  let answer: Response
  try {
    answer = await fetch('/api/v1/' + path, { signal })
  } catch (error) {
    if ((error as Error).name === 'AbortError') throw error
    throw new Failed(0, 'The flow server does not answer. Is it running?')
  }
  if (answer.ok) return await answer.json()
  const text = await answer.text()
  try {
    const problem = JSON.parse(text)
    throw new Failed(answer.status, problem.detail || problem.title)
  } catch (error) {
    if (error instanceof Failed) throw error
    throw new Failed(answer.status, text.slice(0, 300) || answer.statusText)
  }
}

/** A query string without what is empty, with the question mark. */
export function query(of: Record<string, string | number | undefined>): string {
  const pairs = Object.entries(of).filter(([, value]) => value !== undefined && value !== '')
  return pairs.length ? '?' + new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])) : ''
}
