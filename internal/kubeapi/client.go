// Package kubeapi asks an API server in JSON, with a kubeconfig of ours. It
// knows no types of Kubernetes: client-go's would cost each of our processes
// more memory than all else that it does (ADR 0024).
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kuorum/internal/pki"
)

const (
	idle      = 30 * time.Second // how long a connection is kept for the next one
	maxAnswer = 32 << 20         // bytes; a list of some thousand nodes
)

// Kinds of bodies.
const (
	JSON       = "application/json"
	Apply      = "application/apply-patch+yaml"
	MergePatch = "application/merge-patch+json"
)

// ErrNotFound is the end of a request for an object that does not exist.
var ErrNotFound = errors.New("not found")

// ErrConflict is the end of an Update of what somebody else has changed since it was
// read.
var ErrConflict = errors.New("somebody else has changed it")

// Client asks one API server, and no other when that does not answer. Its
// methods block until the answer is there, their context ends, or the
// client's patience does; they may be called from several goroutines.
type Client struct {
	http *http.Client
	host string
}

// New makes a client of the kubeconfig at path, which pki wrote; a request takes
// as long as patience at most. The files that the kubeconfig refers to are read
// again for each connection, since they are renewed. New connects to nobody.
func New(path string, patience time.Duration) (*Client, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the kubeconfig: %w", err)
	}
	connect := func() (string, *tls.Config, error) {
		return pki.KubeconfigTLS(data, func(name string) ([]byte, error) { return os.ReadFile(beside(path, name)) })
	}
	host, _, err := connect()
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		_, config, err := connect()
		if err != nil {
			return nil, fmt.Errorf("cannot use %s: %w", path, err)
		}
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: config} // the handshake included
		return dialer.DialContext(ctx, network, address)
	}
	transport := &http.Transport{DialTLSContext: dial, IdleConnTimeout: idle, MaxIdleConnsPerHost: 2}
	return &Client{http: &http.Client{Transport: transport, Timeout: patience}, host: host}, nil
}

// beside is the path of a file that the kubeconfig at path refers to.
func beside(path, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(path), name)
}

// Get reads what is at path, which begins with a slash and may have a query,
// into an object for JSON; nil looks only whether the answer is good.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.call(ctx, request{method: http.MethodGet, path: path}, into)
}

// Create adds the object body to the collection at path. The object as the
// server has it is read into into, if that is not nil.
func (c *Client) Create(ctx context.Context, path, body string, into any) error {
	return c.call(ctx, request{http.MethodPost, path, JSON, body}, into)
}

// Patch changes the object at path by a body of that kind: Apply or MergePatch.
func (c *Client) Patch(ctx context.Context, path, kind, body string) error {
	return c.call(ctx, request{http.MethodPatch, path, kind, body}, nil)
}

// Update puts body in place of the object at path. It fails with ErrConflict if
// the object has another resource version than body.
func (c *Client) Update(ctx context.Context, path, body string) error {
	return c.call(ctx, request{http.MethodPut, path, JSON, body}, nil)
}

// Through is a client that asks in the same way what listens at another address,
// an https URL without path; its certificate must name that address.
func (c *Client) Through(server string) *Client { return &Client{http: c.http, host: server} }

// Delete removes the object at path.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path}, nil)
}

// Upgrade asks for what is at path as if to change the protocol, as `kubectl exec`
// does. For that an API server makes a connection of its own with who has what is
// below a path with /proxy/, always a new one. It fails only if there is no answer: what
// changes no protocol is refused.
func (c *Client) Upgrade(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.host+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kuorum")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "none")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// request is what is asked; kind is that of body, empty without one.
type request struct{ method, path, kind, body string }

func (c *Client) call(ctx context.Context, r request, into any) error {
	data, err := c.do(ctx, r)
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", strings.ToLower(r.method), r.path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, r request) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.host+r.path, bytes.NewBufferString(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", JSON)
	req.Header.Set("User-Agent", "kuorum")
	if r.kind != "" {
		req.Header.Set("Content-Type", r.kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, ErrNotFound
	}
	if resp.StatusCode == http.StatusConflict {
		return nil, fmt.Errorf("%w: %s", ErrConflict, reason(answer))
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return nil, fmt.Errorf("%s: %s", resp.Status, reason(answer))
	}
	return answer, nil
}

// reason is what a refusal says: the message of an API object of the kind
// Status, or the beginning of a text.
func reason(answer []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(answer, &status) == nil && status.Message != "" {
		return status.Message
	}
	return fmt.Sprintf("%.1000s", bytes.TrimSpace(answer))
}
