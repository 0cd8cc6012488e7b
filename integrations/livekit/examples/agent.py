# LIVEKIT_URL=… LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=… OPENAI_API_KEY=… python agent.py dev
import os

from livekit import agents
from livekit.plugins import lipsync_fast, openai

server = agents.AgentServer()


@server.rtc_session()
async def entrypoint(ctx: agents.JobContext) -> None:
    session = agents.AgentSession(llm=openai.realtime.RealtimeModel(voice="marin"))
    avatar = lipsync_fast.AvatarSession(url=os.environ["LIPSYNC_URL"], avatar="demo")
    await avatar.start(session, room=ctx.room)
    await session.start(agents.Agent(instructions="You are friendly, and brief."), room=ctx.room)
    await session.generate_reply(instructions="Say hello.")


if __name__ == "__main__":
    agents.cli.run_app(server)
