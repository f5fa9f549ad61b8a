/*! throughline ops, Apache-2.0 */
/** What the user did. */
export type UiEvent = 'button_click' | 'link_click' | 'form_submit' | 'route_change' | 'custom';
/** One thing that the user does, from the gesture until its last request is over. */
export interface Operation {
    /** Its name as it is sent: what a header may not hold became `_`. */
    readonly name: string;
    /** The trace, 32 hexadecimal digits. */
    readonly traceId: string;
    /** As `fetch`, and part of this operation whatever else began meanwhile. */
    fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
    /** The headers for a client of your own, which neither uses `fetch` nor `XMLHttpRequest` of this page. */
    headers(): Record<string, string>;
}
/** What may be set. */
export interface Options {
    /** Other origins that get the headers, each as `https://api.example.com`. Compared as a whole. None by default. */
    origins?: string[] | undefined;
    /** Whether full-page navigations and native forms carry the operation by a cookie of ten seconds. */
    cookie?: boolean | undefined;
    /** Where the spans are sent to; same origin. */
    endpoint?: string | undefined;
}
/** The operation that requests are part of at this moment, if there is one. */
export declare const current: () => Operation | undefined;
/**
 * Runs `body` as an operation. It lasts as long as the promise that `body` returns, and as its requests. Where two
 * overlap, `fetch` of the argument says which one a request belongs to.
 */
export declare const op: <T>(name: string, body: (operation: Operation) => T, event?: UiEvent) => T;
/** Starts listening, once for a page. */
export declare const init: (options?: Options) => void;
