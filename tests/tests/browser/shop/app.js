const { allowed, foreign } = document.currentScript.dataset
const { op, current } = window.throughline
const out = text => (document.querySelector('#out').textContent = text)
const later = millis => new Promise(done => setTimeout(done, millis))
const on = (id, type, listener) =>
  document.querySelector(id).addEventListener(type, async event => {
    try {
      out((await listener(event)) || `${id} done`)
    } catch (error) {
      out(`${id} failed: ${error}`)
    }
  })
const xhr = (url, headers = {}) =>
  new Promise((done, failed) => {
    const request = new XMLHttpRequest()
    request.open('POST', url)
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value)
    request.onload = () => done(request.responseText)
    request.onerror = failed
    request.send('x')
  })

on('#chain', 'click', async () => {
  const first = await (await fetch('/api/one')).json()
  await later(50)
  // The body of this one takes longer than an operation stays open by itself.
  const second = await (await fetch(new Request('/api/drip', { headers: { 'x-own': 'kept' } }))).text()
  await xhr('/api/three', { 'x-own': 'kept', baggage: 'user=7' })
  const third = await fetch(new URL('/api/four', location), { method: 'POST', body: 'as it was' })
  return `${first.path} ${second} ${await third.text()}`
})
on('#parallel', 'click', async () => {
  await Promise.all(['a', 'b', 'c', 'd'].map(name => fetch(`/api/${name}?query=secret`)))
  await fetch('/api/after')
})
on('#overlap', 'click', async () => {
  const one = op('upload', async operation => {
    await operation.fetch('/api/upload/1')
    await later(30)
    await operation.fetch('/api/upload/2')
    return operation.traceId
  })
  const two = op('preview with blanks', async operation => {
    await fetch('/api/preview')
    return operation.name
  })
  const [id, name] = await Promise.all([one, two])
  if (id.length !== 32) throw new Error(id)
  try {
    await op('broken', async operation => {
      await operation.fetch('/api/broken')
      throw new RangeError('as the page says it')
    })
  } catch (error) {
    return `${name} ${error.name}`
  }
})
on('#fail', 'click', async () => {
  const answer = await fetch('/api/fail')
  return `pay ${answer.status}`
})
on('#cross', 'click', async () => {
  await fetch(`${allowed}/listed`)
  await fetch(`${foreign}/other`)
  await fetch(`${foreign}/opaque`, { mode: 'no-cors' })
  await xhr(`${foreign}/xhr`)
  await fetch('/api/no-cors', { mode: 'no-cors' })
  await fetch(URL.createObjectURL(new Blob(['blob'])))
  await fetch('/api/home')
})
on('#own', 'click', async () => {
  const traceparent = '00-11111111111111111111111111111111-2222222222222222-01'
  await fetch('/api/own', { headers: { traceparent, 'x-operation-name': 'its-own' } })
  await xhr('/api/own', { traceparent })
  await fetch('/api/ours')
})
on('#away', 'click', async () => {
  await fetch('/api/before')
  location.assign('/shelf')
  await later(60_000)
})
on('#slow', 'click', async () => {
  out('asked')
  await fetch('/api/never')
})
on('#caught', 'submit', async event => {
  event.preventDefault()
  await fetch('/api/subscribe', { method: 'POST', body: new FormData(event.target) })
})
on('#plain', 'click', () => 'left')
globalThis.cookies = () => document.cookie
globalThis.idle = async () => {
  while (current()) await later(10)
  return 'idle'
}
