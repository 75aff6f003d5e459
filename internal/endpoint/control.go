package endpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/tickle"
)

// VIPPath of the status server answers GET with a cluster.VIPStatus. MovePath of
// the control socket takes POST with the query to=ADDRESS of a peer: 200 when
// that one holds the virtual IP, else the reason as text. With keep=true the
// connections with it stay here until they end: the peer was prepared by a POST to
// its ExpectPath, with from=ADDRESS of this machine.
//
// ClientsPath of the control socket answers GET with a tickle.List of the virtual
// IP's clients here, as tickle.Clients.Wait does; the query since=VERSION is what
// is known already. POST takes the VIPClients of another machine.
//
// PartPath of the control socket takes POST with the query address=HOST:PORT of a
// backend that is about to stop: 200 when its clients were sent elsewhere, within some
// seconds, else the reason as text.
const (
	VIPPath     = "/vip"
	MovePath    = "/vip/move"
	ExpectPath  = "/vip/expect"
	ClientsPath = "/vip/clients"
	PartPath    = "/backends/part"
)

// VIPClients are the clients of the virtual IP that another machine had.
type VIPClients struct {
	From    netip.Addr       `json:"from"` // a peer
	Clients []netip.AddrPort `json:"clients"`
}

// maxList bounds what is read of a list in JSON.
const maxList = 4 << 20

// remembered is how many times that the address came or went the balancer's file has
// at least.
const remembered = 1000

// obey takes orders until ctx is done.
func (k *keeper) obey(ctx context.Context) error {
	control, err := k.listen(ctx)
	if err != nil {
		return fmt.Errorf("cannot take orders: %w", err)
	}
	server := &http.Server{Handler: k.orders(), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(control); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot take orders: %w", err)
	}
	return nil
}

// listen makes the control socket; what an earlier process left is replaced. None
// but root may write in its directory.
func (k *keeper) listen(ctx context.Context) (net.Listener, error) {
	path := k.config().Control
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old control socket: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the control socket of the virtual IP: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func (k *keeper) orders() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+MovePath, func(w http.ResponseWriter, r *http.Request) {
		if err := k.move(r); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("POST "+ExpectPath, func(w http.ResponseWriter, r *http.Request) {
		if err := k.expect(r); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("POST "+PartPath, func(w http.ResponseWriter, r *http.Request) {
		if err := k.partFrom(r.Context(), r.URL.Query().Get("address")); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("GET "+ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64) // no number: nothing is known
		writeJSON(w, k.clients.Wait(r.Context(), since))
	})
	mux.HandleFunc("POST "+ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		var told VIPClients
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxList)).Decode(&told); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if !slices.Contains(k.config().Peers, told.From.String()) {
			http.Error(w, told.From.String()+" is no peer of this machine", http.StatusConflict)
			return
		}
		k.others.Remember(told.From, told.Clients)
	})
	return mux
}

// errNoRouter is before the virtual router has started for the first time.
var errNoRouter = errors.New("this machine does not take part in keeping the virtual IP yet")

// Control is the path of a balancer's control socket: how its agent asks it.
type Control string

// ErrSilent is that a balancer does not answer at its control socket.
var ErrSilent = errors.New("the balancer does not answer")

// Move is a POST to MovePath: it blocks until the peer at that address holds the
// virtual IP, or fails with ErrSilent, or with what the balancer says.
func (c Control) Move(ctx context.Context, to string, keep bool) error {
	return c.post(ctx, fmt.Sprintf("%s?to=%s&keep=%t", MovePath, to, keep), nil)
}

// Expect is a POST to ExpectPath; it fails as Move does.
func (c Control) Expect(ctx context.Context, from string) error {
	return c.post(ctx, ExpectPath+"?from="+from, nil)
}

// Part is a POST to PartPath: it blocks for some seconds at most, and fails as Move does.
func (c Control) Part(ctx context.Context, address string) error {
	return c.post(ctx, PartPath+"?address="+address, nil)
}

// Tell hands over the clients of another server; it fails as Move does.
func (c Control) Tell(ctx context.Context, server netip.Addr, clients []netip.AddrPort) error {
	body, err := json.Marshal(VIPClients{From: server, Clients: clients})
	if err != nil {
		return err
	}
	return c.post(ctx, ClientsPath, bytes.NewReader(body))
}

// Clients asks for the clients of the virtual IP here, as ClientsPath has it: it
// blocks until there are others than at version since.
func (c Control) Clients(ctx context.Context, since uint64) (list tickle.List, err error) {
	resp, err := c.do(ctx, http.MethodGet, ClientsPath+"?since="+strconv.FormatUint(since, 10), nil)
	if err != nil {
		return list, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return list, fmt.Errorf("the balancer answers %s", resp.Status)
	}
	return list, json.NewDecoder(resp.Body).Decode(&list)
}

func (c Control) post(ctx context.Context, path string, body io.Reader) error {
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return errors.New(strings.TrimSpace(string(why)))
}

func (c Control) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", string(c))
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, method, "http://endpoint"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSilent, err)
	}
	return resp, nil
}
