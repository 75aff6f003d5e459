package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/endpoint"
	"kuorum/internal/pki"
)

// tunnelWait is how long a connection into the lab may take to be made.
const tunnelWait = 2 * time.Second

// tunnel serves CONNECT: it leads connections into the lab's own network, which
// the host cannot reach.
type tunnel struct {
	allowed   netip.Prefix // nobody else is dialled
	otherwise http.Handler // serves all other methods
}

func (t tunnel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		t.otherwise.ServeHTTP(w, r)
		return
	}
	address, err := netip.ParseAddrPort(r.Host)
	if err != nil || !t.allowed.Contains(address.Addr()) {
		refuse(w, http.StatusForbidden, fmt.Sprintf("%q is not an address with a port in the lab's network %s", r.Host, t.allowed))
		return
	}
	far, err := (&net.Dialer{Timeout: tunnelWait}).DialContext(r.Context(), "tcp", address.String())
	if err != nil {
		refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = far.Close() // it was not used yet
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	// Whoever speaks before the answer is none of ours.
	_, err = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	if err != nil || buffered.Reader.Buffered() > 0 {
		_, _ = far.Close(), near.Close() // neither was used yet
		return
	}
	// It ends with the lab process at the latest.
	endpoint.Splice(context.WithoutCancel(r.Context()), near, far)
}

func refuse(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(report{Error: why}) // the caller has gone: nobody to tell
}

// Dial connects to an address with a port inside the lab, by way of the lab's
// process. It blocks until the connection is made, for little more than 2 s;
// ctx bounds that alone, not the connection.
func (l *Lab) Dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := l.control(ctx)
	if err != nil {
		return nil, err
	}
	through, err := l.connect(ctx, conn, address)
	if err != nil {
		_ = conn.Close() // what is reported is why it is of no use
		return nil, err
	}
	return through, nil
}

func (l *Lab) connect(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	past := time.Unix(1, 0)
	unwatch := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	defer unwatch()
	fail := func(err error) (net.Conn, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("cannot connect to %s in lab %s: %w", address, l.Name, err)
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", address); err != nil {
		return fail(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return fail(err)
		}
		return fail(refusal(resp.Status, body))
	}
	if !unwatch() {
		return fail(context.Cause(ctx)) // the deadline may be set already
	}
	return &tunnelled{Conn: conn, reader: reader}, nil
}

// tunnelled is a connection whose first bytes may have come with the answer.
type tunnelled struct {
	net.Conn
	reader *bufio.Reader
}

func (t *tunnelled) Read(p []byte) (int, error) { return t.reader.Read(p) }

// CloseWrite ends our direction and leaves the other one open.
func (t *tunnelled) CloseWrite() error {
	half, ok := t.Conn.(interface{ CloseWrite() error })
	if !ok {
		return net.ErrClosed
	}
	return half.CloseWrite()
}

// Agents asks the agents of the lab's machines from the host, by way of the
// lab's process.
func (l *Lab) Agents() (*agent.Client, error) {
	files, err := l.agentFiles()
	if err != nil {
		return nil, err
	}
	return agentClient(files, l.Dial)
}

func (l *Lab) agentFiles() ([][]byte, error) {
	var files [][]byte
	for _, name := range []string{"agent-ca.crt", "agent.crt", "agent.key"} {
		data, err := os.ReadFile(l.Client(name))
		if err != nil {
			return nil, fmt.Errorf("cannot talk to agents: %w", err)
		}
		files = append(files, data)
	}
	return files, nil
}

// agentClient has the server's name checked against the address it dials.
func agentClient(files [][]byte, dial agent.Dialer) (*agent.Client, error) {
	config, err := pki.ClientTLS(files[0], pki.Pair{Cert: files[1], Key: files[2]}, "")
	if err != nil {
		return nil, fmt.Errorf("cannot talk to agents: %w", err)
	}
	return agent.NewClient(config, dial), nil
}

// agentsNow is a client with the files as they are now, which change with the
// cluster's authorities; while they are written, it is the client of before. The
// caller holds asking, or is the only one.
func (d *daemon) agentsNow() (*agent.Client, error) {
	files, err := d.lab.agentFiles()
	if err == nil && !slices.EqualFunc(files, d.agentFiles, bytes.Equal) {
		var client *agent.Client
		if client, err = agentClient(files, nil); err == nil {
			d.agents, d.agentFiles, d.named = client, files, map[string]*agent.Client{}
		}
	}
	if d.agents != nil {
		return d.agents, nil
	}
	return nil, err
}

// agentOf asks the agent of one node by its name: a machine that was given
// another address cannot prove that one before its node knows of it.
func (d *daemon) agentOf(name string) (*agent.Client, error) {
	d.asking.Lock()
	defer d.asking.Unlock()
	agents, err := d.agentsNow()
	if err != nil {
		return nil, err
	}
	if d.named[name] == nil {
		d.named[name] = agents.With(func(config *tls.Config) *tls.Config { return pki.NamedTLS(config, name) })
	}
	return d.named[name], nil
}
